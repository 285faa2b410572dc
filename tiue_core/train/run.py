"""From a recipe to its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..optimize.cpu import keep_pages
from .loop import train
from .recipe import LoraRecipe, Recipe


def run(
    recipe: Recipe,
    progress: Callable[..., None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Train what ``recipe`` describes; returns the folder of the result (a LoRA's file)."""
    if isinstance(recipe, LoraRecipe):
        from .lora.run import train_lora

        return train_lora(recipe, progress)
    # Small networks ask for the same memory again and again; fetched anew it takes half of their
    # time on a CPU. A LoRA of a large student does without: the holes would cost it a third more.
    keep_pages()
    task = recipe.task  # type: ignore[attr-defined]
    make: Any
    estimate: Any = None
    if task == "autoencoder":
        from .tasks.autoencoder import AutoencoderTask as make
    elif task == "judge":
        from .tasks.judge import JudgeTask as make
    elif task == "teacher":
        from .tasks.teacher import TeacherTask as make
    elif task == "drawn":
        from .tasks.drawn import DrawnTask as make
    else:
        from .plan import forecast as estimate
        from .tasks.distill import DistillTask as make
    return train(recipe, make, progress=progress, announce=announce, estimate=estimate)
