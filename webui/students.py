"""Students where Forge finds them: ``stickers`` by itself, folders after a conversion.

Forge picks a model's family by the shapes of its tensors, and reads configs, tokenizer and
scheduler from a folder of its own for that family. The miniature is a family of one, and its folder
is the student's own in this package.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_guess import latent, model_list
from modules import sd_models

from tiue_core.errors import TiueError
from tiue_core.io.files import content_hash, read_header, safetensors_metadata
from tiue_core.students import checkpoint
from tiue_core.students.checkpoint import Made, Parts
from tiue_core.students.folder import weights
from tiue_core.students.ldm_config import unet_config

from .plan import other_model

HERE = Path(__file__).resolve().parent
STICKERS = HERE.parent / "tiue_core" / "stickers" / "student"
_OTHERS = {"SDXL": "label_emb.0.0.", "SD3": "joint_blocks.0.", "Flux": "double_blocks.0."}
_FIRST = "input_blocks.0.0.weight"
_MADE_OF = "tiue.made_of"  # in the header: the hash of what is shipped
_KEPT = HERE / "models"  # ours goes with the extension; the WebUI's folder has a link to it


def _config(part: str) -> dict[str, Any]:
    return json.loads((STICKERS / part / "config.json").read_text(encoding="utf-8"))


_UNET = unet_config(_config("unet"))
_SCALE = _config("vae")["scaling_factor"]


class Stickers(model_list.SD15):
    """The miniature's family: Stable Diffusion 1's names, other widths."""

    huggingface_repo = str(STICKERS)  # an absolute path wins where it is joined to Forge's folder
    unet_config = {name: _UNET[name] for name in ("context_dim", "model_channels")}  # noqa: RUF012
    unet_extra_config = {}  # noqa: RUF012

    def __init__(self, unet_config: dict[str, Any]) -> None:
        super().__init__(unet_config)
        self.unet_config = dict(_UNET)  # detection reads 128 // 96 as a multiple of 1
        self.latent_format = latent.SD15(scale_factor=_SCALE)


def register() -> None:
    """Make the family known, in the place of the one of an earlier load."""
    own = [each for each in model_list.models if each.__name__ != Stickers.__name__]
    model_list.models[:] = [Stickers, *own]
    from backend.diffusion_engine.sd15 import StableDiffusion

    guesses = StableDiffusion.matched_guesses  # compared by type where subclasses do not count
    guesses[:] = [each for each in guesses if each.__name__ != Stickers.__name__] + [Stickers]


def put_in_place() -> Path:
    """``tiue/stickers.safetensors`` in the models folder, whatever was there before.

    Raises:
        TiueError: the file cannot be written.
    """
    kept, shown = _KEPT / "stickers.safetensors", students_folder() / "stickers.safetensors"
    if shown.is_file() and _is_ours(shown):
        return shown
    if not (kept.is_file() and _is_ours(kept)):
        parts = checkpoint.renamed(Parts.of_folder(STICKERS), "stickers")
        checkpoint.write(parts, kept, notes={_MADE_OF: _shipped()})
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.unlink(missing_ok=True)
    try:
        shown.symlink_to(kept)
    except OSError:  # Windows asks for a right that few have
        shutil.copyfile(kept, shown)
    sd_models.list_models()
    return shown


def convert(folder: str) -> str:
    """Convert a diffusers folder into ``tiue/NAME.safetensors``: the new file's name.

    Raises:
        TiueError: the folder is no student's, or Forge could not load what would come of it.
    """
    if not folder.strip():
        raise TiueError("no folder named: give the path of a student's diffusers folder")
    source = Path(folder.strip()).expanduser()
    parts = Parts.of_folder(source)
    _check_family(parts, source)
    out = students_folder() / f"{parts.made.name}.safetensors"
    if out.exists():
        raise TiueError(f"{out} is there already: rename it, or the folder")
    checkpoint.write(parts, out)
    sd_models.list_models()
    return out.name


def students_folder() -> Path:
    return Path(sd_models.model_path) / "tiue"


def trouble(checkpoint_info: Any) -> str | None:
    """What to tell of a checkpoint ahead of its loading, which may take minutes and all memory.

    Its file is gone (the miniature's is put back), or its header names another kind of model.
    """
    path = Path(checkpoint_info.filename)
    if path.is_file():
        return _another_kind(path)
    if path.parent == students_folder() and path.stem == "stickers":
        put_in_place()
        return None
    return (
        f"{path} is gone: put it back, or press the refresh button beside Checkpoint and choose "
        "another"
    )


def _another_kind(path: Path) -> str | None:
    shapes: Mapping[str, tuple[int, ...]] = {}
    with suppress(TiueError):  # no safetensors, or a broken one: the WebUI's own loader tells
        shapes = read_header(path)
    for kind, mark in _OTHERS.items():
        if any(mark in name for name in shapes):
            return other_model(kind)
    first = next((shapes[name] for name in shapes if name.endswith(_FIRST)), ())
    return other_model("for inpainting") if first[1:2] > (4,) else None


def chosen() -> Made | None:
    """How the checkpoint that is chosen on the page was made; None if it does not say."""
    info = sd_models.select_checkpoint()
    with suppress(TiueError):
        return None if info is None else Made.read(info.metadata)
    return None


def _check_family(parts: Parts, source: Path) -> None:
    """Forge's loader holds Stable Diffusion's own shapes, and the miniature's."""
    shape = unet_config(parts.configs["unet"])
    alone = shape["adm_in_channels"] is None  # nothing beside the prompt, as SDXL's sizes are
    for family in (Stickers, model_list.SD15, model_list.SD20):
        if alone and family.matches({"use_temporal_attention": False, **shape}):
            return
    raise TiueError(
        f"{source} has another shape than Stable Diffusion 1.5, 2.1 or the miniature, so Forge "
        "cannot load it: use it in ComfyUI (Load Student), or with the tiue command"
    )


def _is_ours(path: Path) -> bool:
    """Whether this is the miniature as it is shipped now: an update brings other weights."""
    try:
        return safetensors_metadata(path).get(_MADE_OF) == _shipped()
    except TiueError:
        return False


def _shipped() -> str:
    files = [path for part in ("unet", "vae", "text_encoder") for path in weights(STICKERS / part)]
    return content_hash([*files, STICKERS / "scheduler" / "scheduler_config.json"])
