"""Stage 2: the judge, on rendered scenes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from ...stickers.judge import Judge, labels, right
from ...stickers.render import render_pool, to_unit
from ...stickers.world import World
from ..loop import Task
from ..optimizers import descend, optimizer
from ..recipe import JudgeRecipe
from ..spoil import spoiled

logger = logging.getLogger("tiue.train")


class JudgeTask(Task):
    """Cross-entropy on things and background; a little blur and noise, and a part spoiled."""

    averaged = ("judge",)

    def __init__(self, recipe: JudgeRecipe):
        self.recipe = recipe
        self.world = World(**recipe.world.model_dump())
        self.judge = Judge(len(self.world.kind_names), recipe.world.backgrounds, recipe.channels)
        self.modules: Mapping[str, nn.Module] = {"judge": self.judge}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "judge": optimizer(recipe, [self.judge])
        }
        self.pool = render_pool(self.world, recipe.pool, recipe.seed)
        self.pool = F.interpolate(self.pool.float(), (64, 64), mode="area").round().byte()
        self.things, self.backgrounds = labels(
            self.world, self.world.scenes(recipe.pool, recipe.seed)
        )

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.judge.to(accelerator.device)

    def update(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        rows = torch.randint(len(self.pool), (self.recipe.batch_size,), generator=generator)
        images = to_unit(self.pool[rows])
        if torch.rand((), generator=generator) < 0.5:
            side = int(torch.randint(24, 64, (), generator=generator))
            images = F.interpolate(images, (side, side), mode="area")
            images = F.interpolate(images, (64, 64), mode="bilinear")
        strength = 0.1 * torch.rand(len(rows), 1, 1, 1, generator=generator)
        images = images + strength * torch.randn(images.shape, generator=generator)
        wanted, background = self.things[rows].to(device), self.backgrounds[rows].to(device)
        bad = round(self.recipe.spoiled * len(rows))
        if bad:  # nothing is to be found in these; what their background is, nobody asks
            images[:bad] = spoiled(images[:bad], generator)
            wanted = torch.cat([torch.zeros_like(wanted[:bad]), wanted[bad:]])
        with self.accelerator.autocast():
            things, grounds = self.judge(images.to(device))
        loss = F.binary_cross_entropy_with_logits(things.float(), wanted) * wanted.shape[1]
        loss = loss + F.cross_entropy(grounds[bad:].float(), background[bad:])
        norm = descend(self.accelerator, self.optimizers["judge"], loss, self.recipe.grad_clip)
        hits, grounds_right = right((things[bad:], grounds[bad:]), (wanted[bad:], background[bad:]))
        return {
            "loss": loss.detach(),
            "things_right": hits.float().mean(),
            "background_right": grounds_right.float().mean(),
            **({"spoiled_called": (things[:bad] > 0).any(1).float().mean()} if bad else {}),
            "grad_norm": norm,
        }

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> None:
        scenes = self.world.scenes(1000, self.recipe.seed + 1)
        pool = render_pool(self.world, 1000, self.recipe.seed + 1)
        logits = [modules["judge"](to_unit(b).to(self.accelerator.device)) for b in pool.split(100)]
        things, background = (torch.cat(part).cpu() for part in zip(*logits, strict=True))
        hits, grounds = right((things, background), labels(self.world, scenes))
        logger.info(
            "right on fresh scenes: things %.4f, background %.4f, both %.4f",
            hits.float().mean(),
            grounds.float().mean(),
            (hits & grounds).float().mean(),
        )

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        modules["judge"].save(folder)  # type: ignore[operator]
