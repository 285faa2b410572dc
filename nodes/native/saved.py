"""What ComfyUI's own save nodes write of a student, so that it can be read back.

CheckpointSave, ModelSave, CLIPSave and VAESave write tensors only. So what tensors do not say (a
schedule, numbers of heads, a vocabulary) travels as one: JSON as bytes, as ComfyUI itself does with
the vocabularies of T5 and Gemma. Other programs skip it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...tiue_core.errors import TiueError
from ...tiue_core.students.checkpoint import Made
from . import shapes
from .notes import tell

UNET, TEXT = "tiue.student", "tiue.text_encoder"
_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_TEXTS = ("cond_stage_model.", "conditioner.embedders.")  # in a whole checkpoint; SDXL's two
_TEXT_PREFIXES = ("clip_l.transformer.", "clip_h.transformer.", "")


def packed(value: Any) -> Tensor:
    """A JSON value as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).clone()


def unpacked(tensor: Tensor) -> Any:
    try:
        return json.loads(bytes(tensor.tolist()))
    except ValueError:
        raise TiueError("the file's entry of a student is damaged: save it again") from None


def tokenizer_files(folder: Path) -> dict[str, str]:
    """The text files of a tokenizer's folder, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def read(path: Path, build: Any, base: Callable[[str], tuple[Any, Any, Any]]) -> Any:
    """MODEL, CLIP and VAE of a file that was saved in ComfyUI; None if it holds no student.

    Args:
        build: has ``unet(entry, weights)``, ``clip(entry, [weights, ...])``, ``vae(weights)``.
        base: loads the student of a name, for the parts that the file lacks.
    """
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    entries = {
        key.rpartition("tiue.")[2]: unpacked(tensors.pop(key))
        for key in list(tensors)
        if key.endswith((UNET, TEXT))
    }
    unet = below(tensors, _PREFIXES["unet"])
    vae = below(tensors, _PREFIXES["vae"])
    if not vae and "decoder.conv_in.weight" in tensors:
        vae = tensors
    name = next((entry["name"] for entry in entries.values()), None) or _named(path)
    if name is None or not (entries or vae):
        return None
    model = build.unet(entries["student"], unet) if unet and "student" in entries else None
    if model is not None:  # a whole checkpoint has other names for the text encoder, too
        text = {k: v for k, v in tensors.items() if k.startswith(_TEXTS)}
        tensors.update(model.model.model_config.process_clip_state_dict(text))
    text = text_tensors(tensors)
    known = "text_encoder" in entries and text
    others_text = text or any(key.startswith(_TEXTS) for key in tensors)
    for part, there, ours in (("UNet", unet, model), ("text encoder", others_text, known)):
        if there and not ours:
            tell(
                [
                    f"the {part} in {path.name} is not read as a student's, so that of "
                    f"'{name}' is used: load it with a loader of its own"
                ]
            )
    clip = build.clip(entries["text_encoder"], _texts(entries, text, tensors)) if known else None
    parts = (model, clip, build.vae(vae) if vae else None)
    if None not in parts:
        return parts
    others = base(name)
    return tuple(own or other for own, other in zip(parts, others, strict=True))


def vae_config(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of ComfyUI's ``AutoencoderKL``, read off the tensors' shapes."""
    return shapes.vae_params(vae_shape(weights))


def vae_shape(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What diffusers' config of an ``AutoencoderKL`` says of its tensors' shapes."""
    levels = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.down."))
    blocks = [key for key in weights if key.startswith("encoder.down.0.block.")]
    widths = [
        weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)
    ]
    return {
        "block_out_channels": widths,
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "layers_per_block": 1 + max(int(key.split(".")[4]) for key in blocks),
    }


class Folder(TemporaryDirectory):
    """A tokenizer's files on disk for as long as it takes to read them."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(prefix="tiue-")
        for name, text in files.items():
            (Path(self.name) / Path(name).name).write_text(text, encoding="utf-8")


def made_from(entry: dict[str, Any]) -> Made:
    try:
        return Made(**entry["made"])
    except (KeyError, TypeError):
        raise TiueError("the file was saved by another version: save it again") from None


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def text_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a text encoder that CLIPSave named, as transformers names them."""
    for prefix in _TEXT_PREFIXES:
        found = {k: v for k, v in below(tensors, prefix).items() if k.startswith("text_model.")}
        if found:
            return found
    return {}


def _texts(
    entries: dict[str, Any], first: dict[str, Tensor], tensors: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """The weights of one text encoder, or of SDXL's two."""
    if "second" not in entries["text_encoder"]:
        return [first]
    second = below(tensors, "clip_g.transformer.")
    if not second:  # CLIPSave writes each into a file of its own
        raise TiueError(
            "the file has one of the student's two text encoders: save it as a whole checkpoint "
            "(Save Student)"
        )
    return [first, second]


def _named(path: Path) -> str | None:
    """The student that the graph in a file's metadata loaded."""
    _, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    try:
        prompt = json.loads((metadata or {}).get("prompt") or "{}")
    except ValueError:
        return None
    for node in prompt.values():
        if node.get("class_type") == "TiUELoadStudent":
            return node["inputs"].get("student")
    return None
