"""From a recipe to its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .loop import train
from .recipe import Recipe


def run(recipe: Recipe, progress: Callable[..., None] | None = None) -> Path:
    """Train what ``recipe`` describes; returns the folder of the result."""
    task = recipe.task  # type: ignore[attr-defined]
    if task == "autoencoder":
        from .autoencoder import AutoencoderTask as make
    elif task == "judge":
        from .judge import JudgeTask as make  # type: ignore[assignment]
    elif task == "teacher":
        from .teacher import TeacherTask as make  # type: ignore[assignment]
    else:
        from .distill import DistillTask as make  # type: ignore[assignment]
    return train(recipe, make, progress=progress)
