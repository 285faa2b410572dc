"""A decoder that mends: from a student's latents to the drawn scene that was meant.

A student's latents are smeared where it could not know, but they hold what it chose: kind, glyph,
place, size and tilt. The scene of the same words that is nearest to its picture
(``stickers/nearest.py``) is therefore a function of them, and a decoder can learn it without a
guess. The student stays as it is, so its pictures stay as various as they were.
"""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..pipelines.base import TiuePipeline
from ..pipelines.vae import decode, unscaled
from ..stickers.nearest import nearest
from ..stickers.render import render, to_unit
from ..stickers.world import World
from .recipe import data_seed
from .recipe_scratch import AutoencoderRecipe

logger = logging.getLogger("tiue.train")

SCENES = 80_000  #: seed of captions that no other training and no measurement uses
BATCH = 16


class Restored:
    """``latents`` (N, C, h, w) as the autoencoder knows them, ``scenes`` (N, 3, H, W) as bytes."""

    def __init__(self, recipe: AutoencoderRecipe, world: World, accelerator: Accelerator):
        assert recipe.restored is not None
        file = recipe.out / "restored.safetensors"
        if not file.is_file() and accelerator.is_main_process:
            found = _painted(recipe.restored, world, recipe.restored_pool, data_seed(recipe))
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            save_file(dict(zip(("latents", "scenes"), found, strict=True)), partial)
            partial.replace(file)
        accelerator.wait_for_everyone()
        tensors = load_file(file)
        self.latents, self.scenes = tensors["latents"].float(), tensors["scenes"]
        self.device = accelerator.device

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` latents, and the scenes that they are to be decoded to, in [-1, 1]."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[rows].to(self.device), to_unit(self.scenes[rows]).to(self.device)


@torch.no_grad()
def _painted(name: str, world: World, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What a student paints, and the nearest scenes."""
    student = TiuePipeline.from_pretrained(name)
    asked, latents, scenes = world.scenes(count, SCENES + seed), [], []
    for first in range(0, count, BATCH):
        part = asked[first : first + BATCH]
        seeds = [SCENES + seed + first + index for index in range(len(part))]
        captions = [scene.caption for scene in part]
        z = student(captions, seed=seeds, output_type="latent", batch_size=BATCH).images
        images = decode(student.vae, z).clamp(-1, 1)
        latents.append(unscaled(student.vae, z).half())
        scenes.append(render(nearest(world, images, part)))
        if first % (20 * BATCH) == 0:
            logger.info("scenes nearest to what the student paints: %d of %d", first, count)
    return torch.cat(latents), torch.cat(scenes)
