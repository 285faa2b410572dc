"""A student to one checkpoint: what ComfyUI's CheckpointSave writes, with how it was made."""

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
from . import checks
from .onepass import made_of

_CARD = """# {name}

A one-pass text-to-image student, saved in ComfyUI from *{source}*{patches}.

- one encoder pass, {steps} decoders{timesteps}; trained at {side} px
- load it with the node *Load Student*, or `TiuePipeline.from_pretrained("{file}")` where it has a
  shape of Stable Diffusion 1.5 or 2.1
- the licence is that of what it was made from
"""


def save(model: Any, clip: Any, vae: Any, name: str) -> Path:
    """Write output/checkpoints/NAME.safetensors, whole or not at all, and NAME.md beside it.

    Raises:
        ValueError: the name is none, or the MODEL is no student's.
    """
    checks.student(model)
    if not re.fullmatch(r"[\w.+ -]*\w[\w.+ -]*", name):
        raise ValueError(f"name is {name!r}: give a file name of letters, digits, dots and dashes")
    folder = Path(folder_paths.get_output_directory()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    made, out, number = made_of(model), folder / f"{name}.safetensors", 1
    while out.exists():
        number += 1
        out = folder / f"{name}-{number}.safetensors"
    model_management.load_models_gpu([model, clip.load_model()], force_patch_weights=True)
    texts = getattr(clip, "state_dict_for_saving", clip.get_sd)()
    own = getattr(model, "state_dict_for_saving", model.model.state_dict_for_saving)
    tensors = {key: tensor.contiguous() for key, tensor in own(texts, vae.get_sd()).items()}
    context = model.model.model_config.unet_config["context_dim"]
    metadata = checkpoint.metadata(replace(made, name=out.stem), context)
    with TemporaryDirectory(dir=folder, prefix=".tiue-") as unfinished:
        whole = Path(unfinished) / out.name
        save_file(tensors, whole, metadata)
        whole.replace(out)
    card = _CARD.format(
        name=out.stem,
        source=made.name,
        patches=", with patches (LoRA or merge) applied" if model.patches else "",
        steps=made.steps,
        timesteps=f" at {json.dumps(made.timesteps)}" if made.timesteps else "",
        side=made.side,
        file=out.name,
    )
    out.with_suffix(".md").write_text(card, encoding="utf-8")
    return out
