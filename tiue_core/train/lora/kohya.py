"""A LoRA as a file: kohya's names, which ComfyUI, A1111 and diffusers all read.

down_blocks.0.attentions.0.proj_in  ->  lora_unet_down_blocks_0_attentions_0_proj_in
                                        .lora_down.weight, .lora_up.weight, .alpha
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import TiueError
from ...io.files import safetensors_of, write_atomically
from ...students.lora import check_fit
from ...students.lora_names import recognisable
from ..recipe import LoraRecipe
from .adapters import lora_parameters


def kohya_tensors(unet: nn.Module, alpha: float) -> dict[str, torch.Tensor]:
    """The adapters of a diffusers UNet under kohya's names, float32 on the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in lora_parameters(unet).items():
        layer, side = _kohya_name(name)
        tensors[f"{layer}.{side}.weight"] = parameter.detach().float().cpu().contiguous().clone()
        tensors[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return tensors


def check_targets(pipeline: Any, recipe: LoraRecipe) -> None:
    """Refuse layers whose adapters would be trained, and could not be loaded again.

    Raises:
        TiueError: names the first.
    """
    layers = {
        name: module.weight.shape
        for name, module in pipeline.unet.named_modules()
        if getattr(module, "weight", None) is not None
        and any(f".{name}".endswith(f".{target}") for target in recipe.targets)
    }

    def fits(names: Iterable[str]) -> bool:
        pairs = {}
        for name in names:
            (rows, columns), layer = layers[name][:2], "lora_unet_" + name.replace(".", "_")
            pairs[f"{layer}.lora_down.weight"] = torch.zeros(1, columns, *layers[name][2:])
            pairs[f"{layer}.lora_up.weight"] = torch.zeros(rows, 1, *[1] * len(layers[name][2:]))
        try:
            return bool(check_fit(pipeline, recipe.out, recognisable(pairs)))
        except TiueError:
            return False

    layers = {name: shape for name, shape in layers.items() if len(shape) > 1}  # no norms
    if layers and not fits(layers):
        lost = next((name for name in layers if not fits([name])), min(layers))
        raise TiueError(
            f"a LoRA of {lost} could not be loaded again, this diffusers has no name for it: leave "
            "its target out"
        )


def begin_with(unet: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float) -> None:
    """Put a file's tensors into the adapters of a UNet.

    Raises:
        TiueError: it has not the same layers, rank and alpha.
    """
    rest = {name for name in tensors if name.startswith("lora_unet_")}
    for name, parameter in lora_parameters(unet).items():
        layer, side = _kohya_name(name)
        found = tensors.get(f"{layer}.{side}.weight")
        scale = tensors.get(f"{layer}.alpha")
        if found is None or found.shape != parameter.shape or scale is None or scale != alpha:
            raise TiueError(
                f"the LoRA to begin with has other {layer} than this run: give the rank, alpha and "
                "targets it was made with"
            )
        parameter.data.copy_(found)
        rest -= {f"{layer}.{side}.weight", f"{layer}.alpha"}
    if rest:
        raise TiueError(f"the LoRA to begin with also changes {min(rest)}: add it to the targets")


def _kohya_name(parameter: str) -> tuple[str, str]:
    """`down_blocks.0.proj_in.lora_A.default.weight` -> (`lora_unet_down_...`, `lora_down`)."""
    layer, _, rest = parameter.partition(".lora_")
    side = "lora_down" if rest.startswith("A.") else "lora_up"
    return "lora_unet_" + layer.replace(".", "_"), side


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """One file, whole or not at all.

    Raises:
        TiueError: the disk is full, or the folder cannot be written.
    """
    write_atomically(path, safetensors_of(tensors, metadata))


def metadata_of(
    recipe: LoraRecipe,
    settings: Mapping[str, Any],
    *,
    student: str,
    student_hash: str,
    dataset_hash: str,
    captions: list[str],
    title: str,
) -> dict[str, str]:
    """kohya's ``ss_`` keys, which front ends show, the model spec's, and all of ours in one."""
    counted = {caption: captions.count(caption) for caption in sorted(set(captions))}
    return {
        "format": "pt",
        "ss_base_model_version": student,
        "ss_sd_model_name": student,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_output_name": title,
        "ss_num_train_images": str(len(captions)),
        "ss_tag_frequency": json.dumps({"images": counted}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.trigger_phrase": recipe.trigger or "",
        "tiue": json.dumps(
            {
                "student": student,
                "student_hash": student_hash,
                "trigger": recipe.trigger,
                "dataset_hash": dataset_hash,
                "settings": dict(settings),
            },
            sort_keys=True,
        ),
    }
