"""A student to files: one checkpoint, as CheckpointSave writes it, or a diffusers folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import folder_paths
from comfy import model_management
from safetensors.torch import save_file

from ...tiue_core.students import checkpoint
from .. import folders
from . import checks, saving_folder
from .onepass import made_of

CHECKPOINT, FOLDER = "one checkpoint", "diffusers folder"
_CARD = """# {name}

A one-pass text-to-image student, saved in ComfyUI from *{source}*{patches}.

- one encoder pass, {steps} decoders{timesteps}; trained at {side} px
- load it with the node *Load Student*, or {how}
- the licence is that of what it was made from
"""
_HEAD = "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"
_HOW = {
    CHECKPOINT: '`TiuePipeline.from_pretrained("{file}")` where it has a\n'
    "  shape of Stable Diffusion 1.5, 2.1 or SDXL",
    FOLDER: 'with `tiue generate "a prompt" --student {file}`',
}


def save(model: Any, clip: Any, vae: Any, name: str, layout: str = CHECKPOINT) -> tuple[Path, str]:
    """Write output/checkpoints/NAME.safetensors and NAME.md, or output/tiue/NAME with README.md.

    Whole or not at all; a name that is taken gets a number.

    Returns:
        The file or folder, and what Load Student calls it.

    Raises:
        ValueError: the name is none, the MODEL is no student's, or its folder cannot be made.
    """
    checks.student(model)
    if not re.fullmatch(r"[\w.+ -]*\w[\w.+ -]*", name):
        raise ValueError(f"name is {name!r}: give a file name of letters, digits, dots and dashes")
    if layout not in _HOW:
        raise ValueError(f"layout is {layout!r}: choose one of {', '.join(_HOW)}")
    kind, suffix = (folders.KIND, "") if layout == FOLDER else ("checkpoints", ".safetensors")
    place = Path(folder_paths.get_output_directory()) / kind
    place.mkdir(parents=True, exist_ok=True)
    made, out, number = made_of(model), place / f"{name}{suffix}", 1
    while out.exists():
        number += 1
        out = place / f"{name}-{number}{suffix}"
    title = out.name.removesuffix(suffix)
    card = _CARD.format(
        name=title,
        source=made.name,
        patches=", with patches (LoRA or merge) applied" if model.patches else "",
        steps=made.steps,
        timesteps=f" at {json.dumps(made.timesteps)}" if made.timesteps else "",
        side=made.side,
        how=_HOW[layout].format(file=out.name),
    )
    entries = saving_folder.entries(model, clip) if layout == FOLDER else None
    model_management.load_models_gpu([model, clip.load_model()], force_patch_weights=True)
    texts = getattr(clip, "state_dict_for_saving", clip.get_sd)()
    own = getattr(model, "state_dict_for_saving", model.model.state_dict_for_saving)
    whole = own(dict(texts), vae.get_sd())  # which empties what it is given
    tensors = {key: tensor.contiguous() for key, tensor in whole.items()}
    with TemporaryDirectory(dir=place, prefix=".tiue-") as unfinished:
        file = Path(unfinished) / out.name
        if entries:
            saving_folder.write(*entries, {**tensors, **texts}, made, file)
            (file / "README.md").write_text(_HEAD + card, encoding="utf-8")
        else:
            context = model.model.model_config.unet_config["context_dim"]
            save_file(tensors, file, checkpoint.metadata(replace(made, name=title), context))
        file.replace(out)
    if layout == CHECKPOINT:
        out.with_name(f"{title}.md").write_text(card, encoding="utf-8")
    return out, f"{kind}/{out.name}"
