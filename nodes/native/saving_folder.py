"""A student to a diffusers folder, which `tiue`, diffusers and every one of our tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.utils
from torch import Tensor

from ...tiue_core import __version__
from ...tiue_core.students.checkpoint import BLANK, Made
from ...tiue_core.students.models import load_components
from . import saved, shapes

Entry = dict[str, Any]
Weights = dict[str, Tensor]
_TINY = 0.18215  # what a tiny autoencoder's scale is measured against; see loading._latent_scale


def write(unet: Entry, text: Entry, tensors: Weights, made: Made, folder: Path) -> None:
    """Fill an empty `folder`, and read it back.

    Args:
        unet, text: see `entries`.
        tensors: of all three, as CheckpointSave names them but the text encoder's, which are
            CLIPSave's.

    Raises:
        TiueError: the folder cannot be read back.
    """
    names = comfy.utils.unet_to_diffusers(shapes.unet_config(unet["unet"]))
    given = saved.below(tensors, "model.diffusion_model.")
    own = {theirs: given[ours] for theirs, ours in names.items() if ours in given}
    # ComfyUI has one name for what diffusers calls a class, or SDXL's sizes; a student has no class
    own = {key: tensor for key, tensor in own.items() if not key.startswith("class_embedding.")}
    _part(folder / "unet", unet["unet"], own)
    kind = _vae(folder / "vae", saved.below(tensors, "first_stage_model."), unet["scale"], made)
    scheduler = {"_class_name": "DDIMScheduler", **made.scheduler}
    _write(folder / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=2))
    index = {
        "_class_name": "TiuePipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        **_texts(folder, text, tensors),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", kind],
        "steps": made.steps,
        "timesteps": made.timesteps,
    }
    if made.blank_zeros is not None:
        index |= {"_class_name": "TiueXLPipeline", BLANK: made.blank_zeros}
    _write(folder / "model_index.json", json.dumps(index, indent=2))
    parts = [name for name in index if (folder / name).is_dir() and name != "scheduler"]
    load_components(folder, parts)  # says which weight is missing or left over


def entries(model: Any, clip: Any) -> tuple[Entry, Entry]:
    """What Load Student kept beside the tensors of a MODEL and of a CLIP: a config, a vocabulary.

    Raises:
        ValueError: they came by another way, or from a file that does not say.
    """
    unet = vars(model.model.model_config).get("tiue_entry")
    inner = getattr(clip.tokenizer, getattr(clip.tokenizer, "clip", "clip_l"), None)
    text: Any = getattr(inner, "entry", None)
    for what, entry in (("MODEL", unet), ("CLIP", text)):
        if entry is None:
            raise ValueError(
                f"this {what} is from a checkpoint that does not say its config: choose 'one "
                "checkpoint', or load the student from a diffusers folder"
            )
    return saved.unpacked(unet), text


def _texts(folder: Path, entry: Entry, tensors: Weights) -> dict[str, list[str]]:
    """Write the text encoder and its tokenizer, or SDXL's two; what the index says of them."""
    index = {}
    kinds = {"": (entry, "CLIPTextModel", saved.text_tensors(tensors))}
    if "second" in entry:
        second = saved.below(tensors, "clip_g.transformer.")
        kinds["_2"] = entry["second"], "CLIPTextModelWithProjection", second
    for which, (one, kind, weights) in kinds.items():
        config = {**one["config"], "architectures": [kind]}
        _part(folder / f"text_encoder{which}", config, weights, "model.safetensors")
        for name, content in one["tokenizer"].items():
            _write(folder / f"tokenizer{which}" / name, content)
        index[f"text_encoder{which}"] = ["transformers", kind]
        index[f"tokenizer{which}"] = ["transformers", "CLIPTokenizer"]
    return index


def _vae(folder: Path, tensors: Weights, scale: float, made: Made) -> str:
    """Write the autoencoder; its diffusers class."""
    if any(key.startswith("taesd_") for key in tensors):
        renamed = {}
        for key, tensor in tensors.items():
            if key.startswith("taesd_"):
                part, number, rest = key.removeprefix("taesd_").split(".", 2)
                shift = part == "decoder"  # as loading._tiny
                renamed[f"{part}.layers.{int(number) - shift}.{rest}"] = tensor
        config: dict[str, Any] = {"scaling_factor": round(_TINY / float(tensors["vae_scale"]), 6)}
        _part(folder, {"_class_name": "AutoencoderTiny", **config}, renamed)
        return "AutoencoderTiny"
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = saved.vae_shape(tensors)
    levels = len(config["block_out_channels"])
    config |= {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": any(".mid.attn_1." in key for key in tensors),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "sample_size": made.side,
        "scaling_factor": scale,
    }
    _part(folder, config, convert_ldm_vae_checkpoint(dict(tensors), config=config))
    return "AutoencoderKL"


def _part(
    folder: Path,
    config: dict[str, Any],
    tensors: Weights,
    file: str = "diffusion_pytorch_model.safetensors",
) -> None:
    from safetensors.torch import save_file

    _write(folder / "config.json", json.dumps(config, indent=2))
    whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / file, {"format": "pt", "writer": f"tiue {__version__}"})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
