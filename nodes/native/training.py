"""LoRA training inside ComfyUI: out of inference mode, with its interrupt and its progress bar."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from ...tiue_core.train.loop import Stopped
from ...tiue_core.train.lora.run import loss_curve, train_lora, updates
from ...tiue_core.train.recipe import LoraRecipe, checked
from .. import folders


def named(choice: str) -> str:
    """A choice of Load Student as the library names it."""
    path = folders.on_disk(choice)
    return choice if path is None else str(path)


def train(
    images: str, trigger: str, models: dict[str, str], settings: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]], int]:
    """Train and return (LORA_MODEL, LOSS_MAP, updates).

    The file's name holds a hash of what was asked for: asked again after an interrupt, the run
    goes on, and asked for something else, another one begins.
    """
    if settings.get("rank"):
        settings = {**settings, "alpha": settings["rank"]}
    asked = json.dumps([images, trigger, models, settings], sort_keys=True)
    name = f"{Path(images).name}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    recipe = checked(
        LoraRecipe,
        {
            **settings,
            **models,
            "trigger": trigger or None,
            "images": Path(folder_paths.get_input_directory()) / images,
            "out": Path(folder_paths.get_output_directory()) / "loras" / f"{name}.safetensors",
        },
    )
    management = comfy.model_management
    management.unload_all_models()
    management.soft_empty_cache()

    def told(done: int, total: int, values: dict[str, float]) -> None:
        if not management.processing_interrupted():  # the bar would raise before a checkpoint
            bar.update_absolute(done, total)

    bar = comfy.utils.ProgressBar(updates(recipe))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            file = train_lora(
                recipe,
                told,
                stop=management.processing_interrupted,
                say=logging.info,
                before=lambda found: logging.info("needs about %.1f GB", found.gigabytes),
            )
            tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    except Stopped:
        management.throw_exception_if_processing_interrupted()
        raise
    return tensors, {"loss": loss_curve(recipe.out)}, updates(recipe)
