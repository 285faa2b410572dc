"""From a pipeline to a file: torch.export, then ONNX or a .pt2, whole or not at all."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from ..errors import TiueError
from ..files import check_writable
from . import metadata
from .student import Decoder, Encoder, Student, TextEncoder, Vae

TARGETS = ("onnx", "pt2")
_INLINE = 1_500_000_000  # bytes; protobuf stops at 2 GiB, so what is larger lies beside the graph
_LARGEST = 4  # times the student's own side, what a graph of dynamic size takes


@dataclass
class Traced:
    """One graph to be: a module, its inputs by name, and which of their axes are free."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    axes: dict[str, Any]
    outputs: list[str]


def export(
    pipe: Any,
    out: Path,
    to: str = "onnx",
    *,
    steps: int | None = None,
    decoders: str = "exact",
    width: int | None = None,
    height: int | None = None,
    dynamic_size: bool = False,
    parts: bool = False,
    record: dict[str, Any] | None = None,
    advance: Callable[[int], None] = lambda by: None,
) -> list[Path]:
    """Write a student as one graph, or each of its parts as one.

    Args:
        pipe: a ``TiuePipeline``; LoRAs are to be fused into it before. Its dtype is the graph's.
        out: the file; for ``parts`` ``NAME.onnx`` becomes ``NAME.text_encoder.onnx`` and so on.
        to: "onnx" or "pt2".
        steps, decoders, width, height: as ``TiuePipeline`` takes them; fixed in the graph.
        dynamic_size: let the graph take other sizes than this one.
        record: more for the description, such as the student's name and licence.

    Returns:
        The files written. Weights of more than 1.5 GB lie in ``NAME.onnx.data``.

    Raises:
        TiueError: a package is missing, or the file cannot be written.
        ValueError: a size, K or ``decoders`` that the student does not take.
    """
    if to == "onnx":
        _need_onnx()
    check_writable(out.parent)
    schedule = pipe.schedule(steps, decoders)
    shape = pipe._latent_shape(width, height, None, 1)
    about = {**_describe(pipe, schedule, shape, dynamic_size), **(record or {})}
    about |= {"steps": steps, "decoders": decoders, "whole": not parts}
    stored = {
        metadata.ABOUT: json.dumps(about, sort_keys=True),
        metadata.TOKENIZER: _tokenizer(pipe).to_str(),
        "licence": str(about.get("licence", "")),
    }
    with torch.no_grad(), _quietly():
        written = []
        for graph in _traced(pipe, schedule, about, parts):
            path = out.with_name(f"{out.stem}.{graph.name}{out.suffix}") if parts else out
            program = _program(graph)
            advance(1)
            save = _save_onnx if to == "onnx" else _save_pt2
            with TemporaryDirectory(dir=out.parent, prefix=".tiue-") as folder:
                save(graph, program, Path(folder) / path.name, stored)
                for file in sorted(
                    Path(folder).iterdir(), reverse=True
                ):  # the data, then the graph
                    written.append(file.replace(out.parent / file.name))
            advance(1)
    return written


def _describe(
    pipe: Any, schedule: Any, shape: tuple[int, int, int], dynamic_size: bool
) -> dict[str, Any]:
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

    ours = pipe.tokenizer
    fast = getattr(ours, "backend_tokenizer", None) or convert_slow_tokenizer(ours)
    fast = Tokenizer.from_str(fast.to_str())  # a copy
    limit = min(ours.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    fast.enable_truncation(limit)
    fast.enable_padding(length=limit, pad_id=ours.pad_token_id, pad_token=ours.pad_token)
    return fast


def _traced(pipe: Any, schedule: Any, about: dict[str, Any], parts: bool) -> Iterator[Traced]:
    """The graphs to write, each with inputs like those that it will be given."""
    factor, own = about["factor"], about["multiple"] // about["factor"]
    rows = max(2, 63 // len(schedule))  # diffusers asks whether an upsampler's batch is below 64
    batch = {0: Dim("batch", min=1, max=rows)}
    sides = [about["height"] // factor, about["width"] // factor]
    area = dict(batch)
    if about["dynamic_size"]:
        most = about["largest"] // about["multiple"]
        area |= {
            axis: own * Dim(name, min=2, max=most) for axis, name in ((2, "rows"), (3, "columns"))
        }
        sides[1] += own if sides[0] == sides[1] else 0  # or they would be taken for one
    limit = _tokenizer(pipe).padding["length"]
    ids = torch.zeros(2, limit, dtype=torch.int64)
    noise = torch.randn(2, about["channels"], *sides)
    if not parts:
        yield Traced(
            "student",
            Student(pipe, schedule).eval(),
            {"input_ids": ids, "noise": noise},
            {"input_ids": batch, "noise": area},
            ["image", "latents"],
        )
        return
    encode_text, encode = TextEncoder(pipe).eval(), Encoder(pipe, schedule).eval()
    embeds = encode_text(ids)
    mid, *skips = encode(noise, embeds)
    yield Traced(
        "text_encoder", encode_text, {"input_ids": ids}, {"input_ids": batch}, ["prompt_embeds"]
    )
    names = [f"skip_{i}" for i in range(len(skips))]
    yield Traced(
        "encoder",
        encode,
        {"noise": noise, "prompt_embeds": embeds},
        {"noise": area, "prompt_embeds": batch},
        ["mid", *names],
    )

    def free(feature: Tensor) -> Any:
        if not about["dynamic_size"]:
            return batch
        scale = noise.shape[2] // feature.shape[2]
        named = {2: "rows", 3: "columns"}
        most = about["largest"] // about["multiple"]
        ratio = own // scale
        dims = {axis: Dim(name, min=2, max=most) for axis, name in named.items()}
        return {**batch, **{a: ratio * d if ratio > 1 else d for a, d in dims.items()}}

    yield Traced(
        "decoder",
        Decoder(pipe, schedule).eval(),
        {"mid": mid, "skips": skips, "noise": noise, "prompt_embeds": embeds},
        {
            "mid": free(mid),
            "skips": [free(skip) for skip in skips],
            "noise": area,
            "prompt_embeds": batch,
        },
        ["latents"],
    )
    yield Traced("vae", Vae(pipe).eval(), {"latents": noise}, {"latents": area}, ["image"])


def _program(graph: Traced) -> Any:
    """torch.export's program. Strict: its tracer keeps `len(tensor)` free, the other fixes it."""
    inputs = tuple(graph.inputs.values())
    return torch.export.export(graph.module, inputs, dynamic_shapes=graph.axes, strict=True)


def _save_pt2(graph: Traced, program: Any, path: Path, stored: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files=stored)


def _save_onnx(graph: Traced, program: Any, path: Path, stored: dict[str, str]) -> None:
    import onnx_ir

    names = []
    for name, value in graph.inputs.items():
        listed = isinstance(value, list)
        names += [f"skip_{i}" for i in range(len(value))] if listed else [name]
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=graph.outputs, verbose=False
    )
    assert onnx is not None
    model = onnx.model
    _name_axes(model)
    _store_in_half(model)
    model.metadata_props.update(stored)
    model.producer_name = "tiue"
    size = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    )
    external = f"{path.name}.data" if size > _INLINE else None
    onnx_ir.save(model, path, external_data=external)


def _name_axes(model: Any) -> None:
    """The batch axis by its name instead of the tracer's symbol."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])


def _store_in_half(model: Any) -> None:
    """Keep in half precision what half precision holds to the last bit, and widen it on loading.

    A student trained or shipped in float16 is then half the size, and the graph computes the same:
    onnxruntime folds the casts when it loads.
    """
    import onnx_ir

    graph, casts = model.graph, []
    for name, value in list(graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < 256:
            continue
        full = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        narrow = onnx_ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
            const_value=onnx_ir.tensor(half, name=f"{name}.half"),
        )
        cast = onnx_ir.node("Cast", [narrow], attributes={"to": onnx_ir.DataType.FLOAT})
        del graph.initializers[name]
        value.replace_all_uses_with(cast.outputs[0])
        graph.register_initializer(narrow)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TiueError(
            f"{error.name} is not installed: pip install 'tiue[export]' to export to ONNX"
        ) from None


@contextmanager
def _quietly() -> Iterator[None]:
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
