"""A student in one `.safetensors` file: a whole checkpoint, or a UNet alone.

Such a file has no tokenizer and no configs, and a UNet alone has no text encoder and no VAE
either. They come from a *base*: a diffusers folder on this machine with a UNet of the same shape.
Nothing is downloaded for it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import read_header, safetensors_metadata
from ..io.messages import first_line
from .base import BARE, PREFIX, find_base, measure, own_parts, wants_sizes
from .checkpoint import BLANK, read_made
from .configs import load_scheduler
from .folder import models_of
from .models import class_of, empty, fill, read_tensors

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, Any]

#: Where OpenCLIP's names stand: Stable Diffusion 2's text encoder, and the second of SDXL.
_OPEN_CLIP = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def read_single_file(
    path: Path, base: Path | None = None, dtype: Any = None
) -> tuple[Path, dict[str, Any]]:
    """The folder that completes a single file, and the models that come from the file itself.

    Args:
        path: a checkpoint in the own naming of Stable Diffusion or SDXL, or a UNet in that or
            diffusers' naming.
        base: a diffusers folder; by default one that is here (`base.find_base`).
        dtype: a torch dtype.

    Raises:
        TiueError: neither a checkpoint nor a UNet, or no base for it on this machine.
    """
    shapes = read_header(path)
    folder, own = base or find_base(path), own_parts(shapes)
    measure(path, shapes)
    tensors = read_tensors([path])
    said = safetensors_metadata(path).get("modelspec.prediction_type")
    try:
        models = {name: _read(name, tensors, folder, path, dtype) for name in own}
        return folder, {**models, **(_made(path) or _scheduler(folder, shapes, said))}
    except TiueError as why:
        raise TiueError(f"{path} does not fit {folder} ({why}): give another --base") from why
    except Exception as error:  # the converters assert, index and raise as they please
        reason = first_line(error)
        raise TiueError(f"{path} does not fit {folder} ({reason}): give another --base") from error


def _read(name: str, tensors: Tensors, folder: Path, path: Path, dtype: Any) -> Any:
    """One model of a file, by diffusers' own table of names, its config from the base."""
    from diffusers.loaders import single_file_utils as names

    if name not in models_of(folder):
        raise TiueError(f"it brings a {name}, as SDXL has, and the folder is of another layout")
    model = empty(class_of(folder, name), folder / name)
    if name == "unet":
        if BARE in tensors:  # diffusers knows the original naming by its prefix only
            tensors = {PREFIX + key: tensor for key, tensor in tensors.items()}
        if PREFIX + BARE in tensors:
            if wants_sizes(tensors) and model.config.addition_embed_type is None:
                raise TiueError("its UNet wants a class or SDXL's sizes beside the prompt")
            found = names.convert_ldm_unet_checkpoint(dict(tensors), config=model.config)
        else:
            found = dict(tensors)
    elif name == "vae":
        found = names.convert_ldm_vae_checkpoint(tensors, config=model.config)
    elif any(key.startswith(_OPEN_CLIP[name]) for key in tensors):
        text = getattr(model, "text_model", model)
        found = names.convert_open_clip_checkpoint(text, tensors, prefix=_OPEN_CLIP[name])
        if name == "text_encoder":  # whose file has a layer more than Stable Diffusion 2 uses
            layers = model.config.num_hidden_layers
            found = {key: tensor for key, tensor in found.items() if _layer_of(key) < layers}
    else:
        found = names.convert_ldm_clip_checkpoint(tensors)
    return fill(model, found, path, dtype)


def _layer_of(name: str) -> int:
    found = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _made(path: Path) -> dict[str, Any]:
    """How a checkpoint of ours says that its student was made."""
    from diffusers import DDIMScheduler

    made = read_made(path)
    if made is None:
        return {}
    scheduler = DDIMScheduler.from_config(made.scheduler)
    options = {"scheduler": scheduler, "steps": made.steps, "timesteps": made.timesteps}
    if made.blank_zeros is not None:
        options[BLANK] = made.blank_zeros
    return options


def _scheduler(folder: Path, shapes: Shapes, said: str | None) -> dict[str, Any]:
    """The base's, where the file says that it predicts something else, or has no signal left at
    the end: keys ``v_pred`` and ``ztsnr``, as ComfyUI and others read them, or its metadata."""
    changes: dict[str, Any] = {}
    if "v_pred" in shapes or said in ("v", "v_prediction"):
        changes["prediction_type"] = "v_prediction"
    elif said in ("epsilon", "sample"):
        changes["prediction_type"] = said
    if "ztsnr" in shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if not changes:
        return {}
    return {"scheduler": load_scheduler(folder, **changes)}
