"""What a student is shown beside the scores of its two teachers, where its recipe asks for it:
samples that the teacher painted once, and real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from .pairs import Pairs, Wanted, teacher_pairs
from .prompts import PromptTokens
from .real_images import RealImages, real_images
from .recipe import DistillRecipe, data_seed
from .vsd import plain


@dataclass(frozen=True)
class Shown:
    """Each None where the recipe does not ask for it."""

    pairs: Pairs | None = None
    images: RealImages | None = None


def shown(
    recipe: DistillRecipe,
    pipeline: Any,
    tokens: PromptTokens,
    empty: Tensor,
    shape: tuple[int, int, int],
    accelerator: Accelerator,
) -> Shown:
    """Made, or read where an earlier start of the run made it; ``shape`` is of one latents."""
    images = recipe.images or recipe.world_images
    pairs = None
    if recipe.pairs:
        folder = recipe.pairs_from or recipe.out / "pairs"
        wanted = Wanted(recipe.pairs, recipe.guidance, recipe.pair_steps, data_seed(recipe))
        with plain(pipeline.unet):
            pairs = teacher_pairs(folder, pipeline, tokens, empty, shape, accelerator, wanted)
    return Shown(
        pairs,
        real_images(recipe, pipeline, accelerator) if images else None,
    )
