"""From a pipeline to a file: torch.export, then ONNX or a .pt2, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin

from ..io.files import check_writable, explain, to_disk, write_atomically
from ..shared.altered import settings
from . import metadata
from .store import need_onnx, onnx_description, save_onnx, save_openvino, save_pt2
from .trace import program, traced

CHECKED = "a cat on a blue background"
_LARGEST = 4  # times the student's own side, what a graph of dynamic size takes


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is to be.

    Args:
        to: "onnx", "openvino" (an .xml with a .bin beside it) or "pt2".
        steps, decoders, width, height: as ``TiuePipeline`` takes them; fixed in the graph.
        dynamic_size: let the graph take other sizes than this one.
        parts: a graph for each part of the student.
        draft: with the tiny decoder of ``pipe.load_draft`` (TAESD) in the autoencoder's place.
    """

    to: str = "onnx"
    steps: int | None = None
    decoders: str = "exact"
    width: int | None = None
    height: int | None = None
    dynamic_size: bool = False
    parts: bool = False
    draft: bool = False


def export(
    pipe: Any,
    out: Path,
    *,
    record: dict[str, Any] | None = None,
    advance: Callable[[int], None] = lambda by: None,
    **options: Any,
) -> list[Path]:
    """Write a student as one graph, or each of its parts as one.

    Args:
        pipe: a ``TiuePipeline``; LoRAs are to be fused into it before. Its dtype is the graph's.
        out: the file; for ``parts`` ``NAME.onnx`` becomes ``NAME.text_encoder.onnx`` and so on.
        record: more for the description, such as the student's name and licence.
        options: see ``GraphOptions``.

    Returns:
        The files written. Weights of more than 1.5 GB lie in ``NAME.onnx.data``.

    Raises:
        TiueError: a package is missing, or the file cannot be written.
        ValueError: a size, K or ``decoders`` that the student does not take.
    """
    asked = GraphOptions(**options)
    if asked.to != "pt2":
        need_onnx()
    check_writable(out.parent)
    if getattr(pipe.text_encoder.config, "use_attention_mask", False):
        raise ValueError("this text encoder wants an attention mask: graphs have no input for one")
    schedule = pipe.schedule(asked.steps, asked.decoders)
    shape = pipe._latent_shape(asked.width, asked.height, None, 1)
    tokenizer = _tokenizer(pipe)
    about = {**describe(pipe, schedule, shape, asked.dynamic_size), **(record or {})}
    about |= {"steps": asked.steps, "decoders": asked.decoders}
    about |= {"draft": asked.draft, "whole": not asked.parts}
    about["weights_hash"] = weights_hash(pipe)
    stored = {
        metadata.ABOUT: json.dumps(about, sort_keys=True),
        metadata.TOKENIZER: tokenizer.to_str(),
        "licence": str(about.get("licence", "")),
    }
    save = {"onnx": save_onnx, "openvino": save_openvino, "pt2": save_pt2}[asked.to]
    written = []
    with torch.no_grad(), quietly():
        for graph in traced(pipe, schedule, about, tokenizer.padding["length"]):
            path = out.with_name(f"{out.stem}.{graph.name}{out.suffix}") if asked.parts else out
            made = program(graph)
            advance(1)
            try:
                with TemporaryDirectory(dir=out.parent, prefix=".tiue-") as folder:
                    save(graph, made, Path(folder) / path.name, stored)
                    written += _in_place(Path(folder), path)
            except OSError as error:
                raise explain(error, path) from error
            advance(1)
    return written


@torch.no_grad()
def export_set(pipe: Any, folder: Path, *, record: dict[str, Any], **options: Any) -> Path:
    """Write the parts of a student into a new folder, for ``runtime.GraphSet``: four graphs for
    any size, the tokenizer, ``student.json``, and a picture that engines are held against.

    Args:
        record, options: see ``export``.

    Raises:
        TiueError: as ``export``.
    """
    name = metadata.SET
    files = export(
        pipe, folder / f"{name}.onnx", parts=True, dynamic_size=True, record=record, **options
    )
    taken = {key: options[key] for key in ("steps", "decoders", "draft") if key in options}
    latents = pipe(CHECKED, seed=0, output_type="latent", **taken).images
    (picture,) = pipe(CHECKED, seed=0, **taken).images
    picture.save(folder / f"{name}.png")
    made = onnx_description(files[0])
    write_atomically(folder / f"{name}.{metadata.TOKENIZER}", made[metadata.TOKENIZER].encode())
    files = sorted(each for each in folder.iterdir() if each.name != f"{name}.json")
    about = json.loads(made[metadata.ABOUT])
    about["files"] = {each.name: each.stat().st_size for each in files}
    about["check"] = {"prompt": CHECKED, "latents": latents.flatten()[:1024].tolist()}
    write_atomically(folder / f"{name}.json", json.dumps(about, sort_keys=True).encode())
    return folder


def weights_hash(pipe: Any) -> str:
    """SHA-256 over every weight of a pipeline as it is now, in float32, the models' configs, and
    what was set on them beside these."""
    digest = hashlib.sha256()
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        model = getattr(pipe, name, None)
        if model is None:
            continue
        digest.update(json.dumps(_config(model), sort_keys=True).encode())
        digest.update("".join(settings(model)).encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
            if tensor.is_floating_point():
                digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


#: what a text encoder computes beside its weights, by any release's name for it
_TEXT = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")


def _config(model: Any) -> dict[str, Any]:
    """Of a model's config what its weights' names and shapes leave open, such as its heads, and
    what no release of its library adds: a setting at its default is not among it."""
    if isinstance(model, ConfigMixin):
        usual = signature(type(model).__init__).parameters
        own = [name for name in model.config if name in usual]
        said = {name: json.dumps(model.config[name], default=str) for name in own}
        return {
            name: text
            for name, text in said.items()
            if text != json.dumps(usual[name].default, default=str)
        }
    return {name: getattr(model.config, name, None) for name in _TEXT}


def _in_place(folder: Path, path: Path) -> list[Path]:
    """Give finished files their names: the weights first, then the graph that needs them."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
    for file in files:
        to_disk(file)
    placed = [file.replace(path.with_name(file.name)) for file in files]
    if len(placed) == 1:  # weights of an earlier, larger graph of this name are nobody's now
        path.with_name(path.name + ".data").unlink(missing_ok=True)
    return placed


def describe(
    pipe: Any, schedule: Any, shape: tuple[int, int, int], dynamic_size: bool
) -> dict[str, Any]:
    """What a graph says of itself as far as models and sizes decide it; see ``metadata.py``."""
    factor = pipe.vae_scale_factor
    multiple = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    channels, *sides = shape
    height, width = (side * factor for side in sides)
    if dynamic_size and any(side % multiple or side < 2 * multiple for side in (height, width)):
        raise ValueError(
            f"a graph of dynamic size starts from sides that are multiples of {multiple}, from "
            f"{2 * multiple}: {width} x {height} is not"
        )
    return {
        "format": metadata.FORMAT,
        "torch": torch.__version__,
        "timesteps": schedule.timesteps.tolist(),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "weights": schedule.weights.tolist(),
        "channels": channels,
        "factor": factor,
        "height": height,
        "width": width,
        "dynamic_size": dynamic_size,
        "multiple": multiple,
        "smallest": 2 * multiple,
        "largest": _LARGEST * max(height, width) // multiple * multiple,
    }


def _tokenizer(pipe: Any) -> Any:
    """The tokenizer in Rust, padding and cutting off where the text encoder wants it."""
    from tokenizers import Tokenizer
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    ours, second = pipe.tokenizer, getattr(pipe, "tokenizer_2", None)
    if second is not None and second.get_vocab() != ours.get_vocab():
        raise ValueError("this student's two tokenizers know other words: a graph has one of them")
    fast = getattr(ours, "backend_tokenizer", None) or convert_slow_tokenizer(ours)
    fast = Tokenizer.from_str(fast.to_str())  # a copy
    limit = min(ours.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    fast.enable_truncation(limit)
    fast.enable_padding(length=limit, pad_id=ours.pad_token_id, pad_token=ours.pad_token)
    return fast


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' remarks on their own work, which a person can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
