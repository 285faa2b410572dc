"""Trains a small ControlNet for the built-in student: edges lead the picture.

It learns from the student's own pictures: the edges of one, other noise, and the picture as the
goal. Nothing is shipped; ``pictures.py`` trains it anew, so that it always fits the student's
weights. It is saved as a Control-LoRA, the one kind for which ComfyUI's loader takes the shape from
the model: the miniature's widths are not multiples of 64.

Run in ComfyUI's Python: edges.py STUDENT FILE [UPDATES]
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tiue_core import SplitUNet, TiuePipeline, draw_noise

PICTURES, BATCH, UPDATES = 256, 8, 400
STRENGTH = 1.0


def edges(images: Tensor) -> Tensor:
    """(B, 3, H, W), as ComfyUI's Canny node finds them at its template's thresholds."""
    from kornia.filters import canny

    return canny(images, 0.1, 0.3)[1].expand(-1, 3, -1, -1)


def train(student: Path, file: Path, updates: int = UPDATES) -> None:
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    pipe = TiuePipeline.from_pretrained(student)
    unet, schedule = SplitUNet(pipe.unet.requires_grad_(False)), pipe.schedule()
    control = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(16, 32, 96, 256)
    ).train()
    goals, hints, embeds = _pictures(pipe)
    optimizer = torch.optim.AdamW(control.parameters(), lr=4e-4, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, total_steps=updates)
    for update in range(updates):
        chosen = torch.randint(len(goals), (BATCH,))
        noise, prompts = torch.randn(BATCH, *goals.shape[1:]), embeds[chosen]
        down, mid = control(
            noise, schedule.timesteps[0], prompts, hints[chosen], STRENGTH, return_dict=False
        )
        features = unet.encode(
            noise,
            schedule.timesteps[0],
            prompts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )
        latents = schedule.combine(noise, unet.decode(features, schedule.timesteps, prompts))
        loss = (latents - goals[chosen]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimizer.step()
        plan.step()
        if update % 50 == 0 or update == updates - 1:
            print(f"update {update}: {loss.item():.3f}", flush=True)
    tiny.save_controlnet(file, control, lora=True)


@torch.no_grad()
def _pictures(pipe: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, edges and prompt embeddings of pictures that the student paints."""
    from tiue_core.stickers.world import World

    world, dice = World(pairs=0.0), random.Random(0)
    prompts = [world.scene(dice).caption for _ in range(PICTURES)]
    goals, hints = [], []
    for first in range(0, PICTURES, 16):
        some = prompts[first : first + 16]
        seeds = list(range(first, first + len(some)))
        noise, embeds = draw_noise(seeds, (4, 16, 16)), pipe.encode_prompt(some)
        schedule, unet = pipe.schedule(), SplitUNet(pipe.unet)
        features = unet.encode(noise, schedule.timesteps[0], embeds)
        latents = schedule.combine(noise, unet.decode(features, schedule.timesteps, embeds))
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        goals.append(latents)
        hints.append(edges((images / 2 + 0.5).clamp(0, 1)))
    return torch.cat(goals), torch.cat(hints), pipe.encode_prompt(prompts)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
