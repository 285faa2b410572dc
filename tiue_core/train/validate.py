"""What a student in training paints, measured: the judge's verdict, or CLIP's."""

from __future__ import annotations

from typing import Any

import torch

from ..pipelines.text import token_ids
from ..pipelines.vae import decode

BATCH = 16
SEED = 910_000  #: of scenes and noises that no training and no evaluation uses


def measure(task: Any, student: Any) -> dict[str, float]:
    """Of a ``DistillTask``: ``val_fidelity`` and ``val_fid`` in the stickers world, else
    ``val_clip`` (mean cosine)."""
    recipe, count = task.recipe, task.recipe.validate_count
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(count, *task.shape, generator=generator).to(task.accelerator.device)
    if recipe.world is None:
        rows = torch.arange(count) % len(task.prompts)
        prompts = [task.prompts[row] for row in rows.tolist()]
    else:
        from ..stickers.world import World

        world = World(recipe.world.kinds, recipe.world.backgrounds, pairs=0)
        scenes = world.scenes(count, SEED)
        prompts = [scene.caption for scene in scenes]
    found, unet = [], task.split(student)
    for first in range(0, count, BATCH):
        tokens = token_ids(task.pipeline, prompts[first : first + BATCH])
        embeds = task.embeds.of(tokens).to(noise.device)
        found.append(task.paint(unet, noise[first : first + BATCH], embeds)[1])
    latents = torch.cat(found)
    if recipe.world is None:
        assert task.clip is not None
        return {"val_clip": float(task.clip.cosines(latents, prompts).mean())}
    from ..evaluate.metrics import frechet_distance
    from ..evaluate.stickers import look, wholly_right
    from ..stickers.judge import Judge
    from ..stickers.render import render_pool, to_unit

    judge, vae = Judge.load(), task.pipeline.vae
    images = [decode(vae, z) for z in latents.split(BATCH)]
    things, background, features = look(judge, torch.cat(images).float().cpu().clamp(-1, 1))
    real = look(judge, to_unit(render_pool(world, count, SEED + 1)))[2]
    return {
        "val_fidelity": wholly_right((things, background), world, scenes),
        "val_fid": frechet_distance(real, features),
    }
