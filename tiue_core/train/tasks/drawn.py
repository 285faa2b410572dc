"""The last stage of the miniature: a one-pass student taught by the drawn world itself.

    words, noise -> the scene that they stand for (``stickers/posed.py``) -> z, what is learned
    loss = smooth L1(one pass of noise, z) + reader * MSE(what the encoder says of the pose, scores)
           + pixels * (L1 + edges)(of some of them decoded, drawn)

A student that regresses onto its teacher's samples has to guess what a noise becomes, and smears
where it cannot. Here every noise says what it becomes. Poses begin in a small part of their range
and grow, so that the student is never far from what it learns. ``reader`` is a linear layer that is
thrown away: it makes the encoder read the pose off the noise before the decoders can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.one_pass import OnePass, one_pass
from ...core.packed import split
from ...pipelines.base import TiuePipeline
from ...pipelines.text import token_ids
from ...pipelines.vae import decode, encode_mean
from ...stickers.posed import SCORES, posed, scores, told
from ...stickers.render import render, to_unit
from ..attention import written_out
from ..card import drawn_card
from ..draws import Draws, integers, normal
from ..embeds import Embeds
from ..grids import grid
from ..loop import Task
from ..optimizers import adam, backward, optimizer, optimizer_step
from ..patches import edges
from ..prompts import PromptTokens, world_scenes
from ..recipe import DrawnRecipe, data_seed
from ..vsd import distance


class Wanted(NamedTuple):
    """What a batch of prompts and noises stands for."""

    z: Tensor  # (B, C, h, w)
    images: Tensor  # (B, 3, H, W) in [-1, 1]
    scores: Tensor  # (B, SCORES)
    told: Tensor  # (B, SCORES), 1 where the scene depends on the score, else 0


class DrawnTask(Task):
    """One update: scenes drawn for fresh noises, and the student towards them."""

    averaged = ("student",)
    shared_draws = True

    def __init__(self, recipe: DrawnRecipe):
        self.recipe = recipe
        self.pipeline = TiuePipeline.from_pretrained(recipe.student)
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().float().requires_grad_(False)
        unet = self.pipeline.unet.requires_grad_(True)
        config = unet.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.scenes = world_scenes(recipe.world, data_seed(recipe))
        self.prompts = [scene.caption for scene in self.scenes]
        self.schedule = self.pipeline.schedule()
        side = config.sample_size >> (len(config.down_block_types) - 1)
        reader = nn.Sequential(
            nn.Flatten(),
            nn.LayerNorm(config.block_out_channels[-1] * side**2, elementwise_affine=False),
            nn.Linear(config.block_out_channels[-1] * side**2, SCORES),
        )
        self.modules: Mapping[str, nn.Module] = {"student": unet, "reader": reader}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": optimizer(recipe, [unet]),
            "reader": adam(recipe, reader.parameters()),
        }

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.pipeline.to(accelerator.device)
        self.modules["reader"].to(accelerator.device)
        if accelerator.device.type == "cpu":
            written_out(self.pipeline.unet)
        self.tokens = PromptTokens(self.pipeline, self.prompts)
        self.embeds = Embeds(self.pipeline, self.tokens, accelerator, None)

    def reach(self, step: int) -> float:
        """The share of the poses' range that is drawn at an update."""
        recipe = self.recipe
        grown = min(1.0, step / (recipe.grown * recipe.steps)) if recipe.grown else 1.0
        return recipe.reach + (1 - recipe.reach) * grown

    def update(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, accelerator = self.recipe, self.accelerator
        draws = Draws(generator, accelerator.process_index, accelerator.num_processes)
        rows = integers(draws, 0, len(self.scenes), recipe.batch_size)
        noise = normal(draws, (len(rows), *self.shape))
        wanted = self.wanted(rows, noise, self.reach(step))
        device = accelerator.device
        prompt_embeds = self.embeds.of(self.tokens[rows]).to(device)

        passed = self.paint(self.modules["student"], noise.to(device), prompt_embeds)
        found = {"drawn": distance(passed.latents, wanted.z)}
        read = self.modules["reader"](passed.features.mid.float())
        wrong = F.mse_loss(read, wanted.scores, reduction="none") * wanted.told
        found["misread"] = wrong.sum() / wanted.told.sum()
        loss = found["drawn"] + recipe.reader * found["misread"]
        if recipe.pixels:
            some = slice(0, recipe.pixels_of)
            with accelerator.autocast():
                images = decode(self.pipeline.vae, passed.latents[some]).float()
            drawn = wanted.images[some]
            found["pixels"] = F.l1_loss(images, drawn) + edges(images, drawn)
            loss = loss + recipe.pixels * found["pixels"]
        backward(accelerator, loss)
        norms = {
            f"{name}_norm": optimizer_step(accelerator, own, recipe.grad_clip)
            for name, own in self.optimizers.items()
        }
        return {**{name: part.detach() for name, part in found.items()}, **norms}

    @torch.no_grad()
    def wanted(self, rows: Tensor, noise: Tensor, reach: float = 1.0) -> Wanted:
        """What prompts (B,) and their noise (B, C, h, w) stand for."""
        device, said = self.accelerator.device, scores(noise)
        words = [self.scenes[row] for row in rows.tolist()]
        drawn = [posed(scene, one, reach) for scene, one in zip(words, said, strict=True)]
        images = to_unit(render(drawn)).to(device)
        with self.accelerator.autocast():
            z = encode_mean(self.pipeline.vae, images).float()
        of_them = torch.tensor([told(scene) for scene in words], dtype=torch.float32)
        return Wanted(z, images, said.to(device), of_them.to(device))

    def paint(self, unet: nn.Module, noise: Tensor, prompt_embeds: Tensor) -> OnePass:
        with self.accelerator.autocast():
            halves = split(unet, self.pipeline.vae_scale_factor)
            passed = one_pass(halves, self.schedule, noise, prompt_embeds)
        return OnePass(passed.features, passed.predictions, passed.latents.float())

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        """Above what it paints, below what it should have."""
        rows = torch.arange(16)
        noise = normal(torch.Generator().manual_seed(self.recipe.seed), (16, *self.shape))
        device = self.accelerator.device
        tokens = token_ids(self.pipeline, self.prompts[:16])
        embeds = self.embeds.of(tokens).to(device)
        latents = self.paint(modules["student"], noise.to(device), embeds).latents
        both = torch.cat([latents, self.wanted(rows, noise).z])
        return grid(decode(self.pipeline.vae, both), columns=16)

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        parts = {**self.pipeline.components, "unet": modules["student"].eval()}
        own = {name: self.pipeline.config[name] for name in ("steps", "timesteps")}
        type(self.pipeline)(**parts, **own).save_pretrained(folder)
        (folder / "README.md").write_text(drawn_card(self.recipe, self.schedule), encoding="utf-8")
