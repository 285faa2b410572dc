"""Real images for a distillation that is not image-free: their latents, encoded once.

The paper leaves this open. Here the critic's real side may be images instead of, or beside, what
the teacher painted; the student and its one shared encoder stay as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ..errors import TiueError
from ..io.files import safetensors_of, write_atomically
from ..pipelines.text import token_ids
from ..pipelines.vae import encode_mean
from ..stickers.render import render_pool, to_unit
from ..stickers.world import World
from .draws import Source, integers
from .recipe import DistillRecipe, data_seed

logger = logging.getLogger("tiue.train")

BATCH = 32
METADATA = "metadata.jsonl"  #: beside the images, as Hugging Face's imagefolder has it
WORLD_SEED = 70_000  #: scenes that no prompt and no measurement is made of


@dataclass(frozen=True)
class RealImages:
    """``tokens`` (N, L) of the captions and ``latents`` (N, C, h, w), on the CPU."""

    tokens: Tensor
    latents: Tensor

    def draw(self, count: int, source: Source) -> tuple[Tensor, Tensor]:
        rows = integers(source, 0, len(self.latents), count)
        return self.tokens[rows], self.latents[rows]


def real_images(recipe: DistillRecipe, pipeline: Any, accelerator: Accelerator) -> RealImages:
    """The recipe's images as latents of the teacher's autoencoder, made once and kept."""
    factor = pipeline.vae_scale_factor
    side = (recipe.latent_size or pipeline.unet.config.sample_size) * factor
    if recipe.images:
        captions = captions_of(recipe.images)
        batches = _read(recipe.images, list(captions), side)
    else:
        if recipe.world is None:
            raise TiueError("`world_images` are scenes of `world`: name it in the recipe too.")
        world, seed = World(**recipe.world.model_dump()), WORLD_SEED + data_seed(recipe)
        scenes = world.scenes(recipe.world_images, seed)
        captions = {str(index): scene.caption for index, scene in enumerate(scenes)}
        batches = iter(render_pool(world, len(scenes), seed).split(BATCH))
    tokens = token_ids(pipeline, list(captions.values()))
    file = (recipe.images_from or recipe.out / "images") / f"{len(captions)}-{side}.safetensors"
    if not file.is_file() and accelerator.is_main_process:
        logger.info("encoding %d images", len(captions))
        latents = _encode(pipeline, batches, accelerator)
        write_atomically(file, safetensors_of({"latents": latents.half()}, {}))
    accelerator.wait_for_everyone()
    return RealImages(tokens, load_file(file)["latents"].float())


def with_images(
    images: RealImages,
    share: float,
    painted: Tensor,
    prompt_embeds: Tensor,
    embed: Callable[[Tensor], Tensor],
    source: Source,
) -> tuple[Tensor, Tensor]:
    """Latents and prompt_embeds of which ``share`` are images, the rest what the teacher painted
    (B, C, h, w) for ``prompt_embeds`` (B, N, D)."""
    batch = len(prompt_embeds)
    count = max(1, round(share * batch))
    tokens, latents = images.draw(count, source)
    embeds, latents = embed(tokens).to(prompt_embeds.device), latents.to(prompt_embeds.device)
    if count == batch:
        return latents, embeds
    return torch.cat([latents, painted[count:]]), torch.cat([embeds, prompt_embeds[count:]])


def captions_of(folder: Path) -> dict[str, str]:
    """File name -> caption, from ``metadata.jsonl``."""
    try:
        lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        captions = {str(row["file_name"]): str(row["text"]) for row in rows}
    except OSError as error:
        raise TiueError(
            f"{folder / METADATA} cannot be read ({error.strerror}): images need their captions, "
            "a line of JSON with `file_name` and `text` for each."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise TiueError(
            f"{folder / METADATA} is not lines of JSON with `file_name` and `text`: mend it."
        ) from None
    missing = [name for name in captions if not (folder / name).is_file()]
    if missing or not captions:
        what = f"lacks {missing[0]}" if missing else "names no image"
        raise TiueError(f"{folder} {what}: put the images beside {METADATA}.")
    return captions


def _read(folder: Path, names: list[str], side: int) -> Iterator[Tensor]:
    """Batches (B, 3, side, side) of bytes, cut to their middle square."""
    import numpy as np
    from PIL import Image, ImageOps

    for first in range(0, len(names), BATCH):
        parts = []
        for name in names[first : first + BATCH]:
            with Image.open(folder / name) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            parts.append(torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1))
        yield torch.stack(parts)


@torch.no_grad()
def _encode(pipeline: Any, batches: Iterator[Tensor], accelerator: Accelerator) -> Tensor:
    vae, found = pipeline.vae, []
    for batch in batches:
        with accelerator.autocast():
            latents = encode_mean(vae, to_unit(batch).to(accelerator.device))
        found.append(latents.float().cpu())
    return torch.cat(found).contiguous()
