"""What both stages stand on, made once: models, the pictures as latents, prompts as embeddings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...core.arguments import both_sides
from ...core.forward_process import Noising
from ...core.noise import draw_noise
from ...core.packed import split, take_packed
from ...core.schedule import OneWaySchedule
from ...core.unet import SplitUNet
from ...errors import TiueError
from ...pipelines.vae import encode_mean
from ..recipe import LoraRecipe
from .kohya import write
from .pictures import Pictures, as_array

PRIOR_FILE = "prompts.txt"  #: in a student's folder: prompts of the world it knows
GENERAL = Path(__file__).with_name("prior.txt")


@dataclass(frozen=True)
class Group:
    """The pictures of one bucket: ``latents`` (N, C, h, w) and ``embeds`` (N, L, D)."""

    latents: Tensor
    embeds: Tensor


@dataclass(frozen=True)
class Prior:
    """What must stay as it is: the student's own pictures of other prompts."""

    embeds: Tensor  # (N, L, D)
    noise: Tensor  # (N, C, h, w)
    latents: Tensor  # (N, C, h, w)


@dataclass
class Parts:
    """``pipeline`` is the student's; ``captions`` belong to ``embeds`` (N, L, D)."""

    pipeline: Any
    teacher: Any
    schedule: OneWaySchedule
    noising: Noising
    groups: list[Group]
    captions: list[str]
    embeds: Tensor
    empty: Tensor  # (1, L, D)
    prior: Prior | None
    shape: tuple[int, int, int]

    @property
    def student(self) -> Any:
        return self.pipeline.unet

    @property
    def halves(self) -> SplitUNet:
        """The student's encoder and decoder, plainly."""
        return split(self.student, self.pipeline.vae_scale_factor)


@torch.no_grad()
def make_parts(
    recipe: LoraRecipe, pipeline: Any, teacher: Any, pictures: Pictures, folder: Path
) -> Parts:
    """Encode what there is to encode; ``folder`` keeps what is dear to make again."""
    unet = pipeline.unet
    for model in (unet, teacher, pipeline.vae, *pipeline._text_encoders()):
        model.eval().requires_grad_(False)
    take_packed(teacher, pipeline.vae_scale_factor)
    device = pipeline._execution_device
    captions = list(dict.fromkeys(pictures.captions))
    embeds = pipeline.encode_prompt(captions).float()
    index = {caption: row for row, caption in enumerate(captions)}
    shape = (unet.config.in_channels, *both_sides(unet.config.sample_size))
    groups = [
        Group(_encode(recipe, pipeline, pictures, bucket), embeds[rows])
        for bucket, rows in _buckets(recipe, pictures, index).items()
    ]
    return Parts(
        pipeline=pipeline,
        teacher=teacher,
        schedule=pipeline.schedule(),
        noising=Noising.from_scheduler(pipeline.scheduler).to(device),
        groups=groups,
        captions=captions,
        embeds=embeds,
        empty=pipeline.encode_prompt([""]).float(),
        prior=_prior(recipe, pipeline, shape, folder) if recipe.prior else None,
        shape=shape,
    )


def _buckets(
    recipe: LoraRecipe, pictures: Pictures, index: dict[str, int]
) -> dict[tuple[int, int], list[int]]:
    """Bucket -> row of the caption of every picture in it, mirror images after the others."""
    rows: dict[tuple[int, int], list[int]] = {}
    for picture in pictures.items:
        rows.setdefault(picture.bucket, []).append(index[picture.caption])
    return {bucket: found * (1 + recipe.mirror) for bucket, found in rows.items()}


def _encode(
    recipe: LoraRecipe, pipeline: Any, pictures: Pictures, bucket: tuple[int, int]
) -> Tensor:
    vae = pipeline.vae
    found = torch.stack([as_array(p.open()) for p in pictures.items if p.bucket == bucket])
    if recipe.mirror:
        found = torch.cat([found, found.flip(-1)])
    batches = found.to(vae.device, vae.dtype).split(4)
    return torch.cat([encode_mean(vae, batch) for batch in batches]).float()


def _prior(recipe: LoraRecipe, pipeline: Any, shape: tuple[int, int, int], folder: Path) -> Prior:
    prompts = prior_prompts(recipe, Path(pipeline.config._name_or_path))
    rng = random.Random(recipe.seed)
    chosen = [rng.choice(prompts) for _ in range(recipe.priors)]
    embeds = pipeline.encode_prompt(chosen).float()
    noise = draw_noise([recipe.seed * 1_000_003 + row for row in range(len(chosen))], shape)
    file = folder / "prior.safetensors"
    if not file.is_file():
        latents = pipeline(
            prompt_embeds=embeds, latents=noise, batch_size=recipe.batch_size, output_type="latent"
        ).images
        write(file, {"latents": latents.float().cpu().contiguous()}, {})
    latents = load_file(file)["latents"]
    return Prior(embeds, noise.to(embeds.device), latents.to(embeds.device))


def prior_prompts(recipe: LoraRecipe, student: Path) -> list[str]:
    """The recipe's, or those in the student's folder, or the general ones.

    Raises:
        TiueError: the recipe's file cannot be read or holds none.
    """
    file = recipe.prior_prompts
    if file is None:
        file = student / PRIOR_FILE if (student / PRIOR_FILE).is_file() else GENERAL
    try:
        lines: Sequence[str] = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise TiueError(f"the prompts {file} cannot be read: give a text file in UTF-8") from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise TiueError(f"{file} holds no prompt: write one a line")
    return prompts
