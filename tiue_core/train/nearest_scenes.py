"""What a student of the drawn world was on its way to: the drawn scene nearest to its picture.

A student that regresses onto its teacher's sample has to guess what a noise becomes, and where it
cannot, it smears. Its own picture has chosen already: glyph, place, size and tilt of the scene of
the same words that is nearest to it (``stickers/nearest.py``) can be read off the noise, for that
is what the student did. It is the other way round from implicit maximum likelihood estimation
(arXiv:1809.09087), which takes the nearest picture to each scene.

The pictures are those that the student painted when it began. Those of now would lead astray: a
student that follows itself goes a little towards what is easiest with every update, and after three
hundred all things were of one size, in the middle.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..core.packed import split
from ..core.schedule import OneWaySchedule
from ..pipelines.vae import decode, encode_mean
from ..stickers.nearest import nearest
from ..stickers.render import render, to_unit
from ..stickers.world import World
from ..students.models import load_model
from .attention import written_out
from .prompts import world_scenes
from .recipe import DistillRecipe
from .vsd import one_pass_of


class NearestScenes:
    """``scenes(noise, prompt_embeds, rows)``: (B, C, h, w), (B, N, D) and (B,) -> z (B, C, h, w) of
    the scenes that are nearest to what the recipe's ``init`` paints of them."""

    def __init__(
        self,
        recipe: DistillRecipe,
        pipeline: Any,
        schedule: OneWaySchedule,
        accelerator: Accelerator,
    ):
        assert recipe.world is not None and recipe.init is not None
        self.world, self.scenes = World(**recipe.world.model_dump()), world_scenes(recipe)
        unet = load_model(UNet2DConditionModel, recipe.init).eval().requires_grad_(False)
        if accelerator.device.type == "cpu":
            written_out(unet)
        self.student = split(unet.to(accelerator.device), pipeline.vae_scale_factor)
        self.schedule, self.vae, self.accelerator = schedule, pipeline.vae, accelerator

    @torch.no_grad()
    def __call__(self, noise: Tensor, prompt_embeds: Tensor, rows: Tensor) -> Tensor:
        given = (self.accelerator, self.student, self.schedule, noise, prompt_embeds)
        _, latents = one_pass_of(*given)
        with self.accelerator.autocast():
            images = decode(self.vae, latents).clamp(-1, 1)
        found = nearest(self.world, images, [self.scenes[row] for row in rows.tolist()])
        with self.accelerator.autocast():
            return encode_mean(self.vae, to_unit(render(found)).to(noise.device)).float()
