"""What a student of the drawn world was on its way to: the nearest drawn scene's latents.

Once a student paints what the teacher would, a sharper target than the teacher's sample is the
scene of the same words that is nearest to the student's own picture (``stickers/nearest.py``). It
is chosen by the picture, not by the noise, so nothing has to be guessed and nothing smears: the
opposite way round from implicit maximum likelihood estimation (arXiv:1809.09087), which takes the
nearest picture to each scene. This wants the world beside its prompts; no other distillation does.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..pipelines.vae import decode, encode_mean
from ..stickers.nearest import nearest
from ..stickers.render import render, to_unit
from ..stickers.world import World
from .prompts import world_scenes
from .recipe import DistillRecipe


class NearestScenes:
    """``scenes(latents, rows)``: z (B, C, h, w) of prompts -> z of the nearest scenes, float32."""

    def __init__(self, recipe: DistillRecipe, pipeline: Any, accelerator: Accelerator):
        assert recipe.world is not None
        self.world, self.scenes = World(**recipe.world.model_dump()), world_scenes(recipe)
        self.vae, self.accelerator = pipeline.vae, accelerator

    @torch.no_grad()
    def __call__(self, latents: Tensor, rows: Tensor) -> Tensor:
        with self.accelerator.autocast():
            images = decode(self.vae, latents).clamp(-1, 1)
        found = nearest(self.world, images, [self.scenes[row] for row in rows.tolist()])
        with self.accelerator.autocast():
            return encode_mean(self.vae, to_unit(render(found)).to(latents.device)).float()
