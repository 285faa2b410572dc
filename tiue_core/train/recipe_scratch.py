"""What every recipe has in common, and the recipes of networks that are trained from scratch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import TiueError


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt hyperparameter must not be a silent default."""

    model_config = ConfigDict(extra="forbid")


class WorldConfig(Strict):
    """Which part of the stickers world is learned (``stickers/world.py``)."""

    kinds: int = Field(24, ge=2)
    backgrounds: int = Field(8, ge=2, le=10)
    pairs: float = Field(0.25, ge=0, le=1, description="share of scenes with two things")
    more: tuple[str, ...] = Field((), description="kinds beyond the first, by name")


class Recipe(Strict):
    """What every stage has in common."""

    out: Path = Field(description="folder of the run: checkpoints, samples, TensorBoard, result")
    seed: int = 0
    data_seed: int | None = Field(
        None, description="seed of prompts, teacher samples and images; `seed` if null"
    )
    steps: int = Field(gt=0, description="number of updates")
    batch_size: int = Field(gt=0, description="samples per process and update")
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    decay: float = Field(
        0.0, ge=0, le=1, description="share of the updates, at the end, that decay linearly to zero"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average; 0 = none")
    checkpoint_every: int = Field(500, gt=0)
    log_every: int = Field(50, gt=0)
    sample_every: int = Field(1000, gt=0)
    keep: int = Field(1, gt=0, description="checkpoints that stay; older ones go")
    optimizer: Literal["adamw", "adamw8bit", "muon"] = Field(
        "adamw",
        description="adamw8bit keeps its state in 8 bits (bitsandbytes); muon is for networks "
        "from scratch (autoencoder, judge, teacher)",
    )


def check_levels(recipe: Recipe, *names: str) -> None:
    """That these fields are ranges of timesteps."""
    for name in names:
        low, high = getattr(recipe, name)
        if not 0 <= low < high <= 1000:
            raise ValueError(f"{name} is [{low}, {high}]: give 0 <= low < high <= 1000")


Some = TypeVar("Some", bound=Recipe)


def checked(kind: type[Some], content: Any, where: str = "") -> Some:
    """A recipe from a table of settings; what does not fit is one line that begins ``where``."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "extra_forbidden":
            close = get_close_matches(key, kind.model_fields, n=1)
            what = "there is no such key" + (f", did you mean {close[0]}" if close else "")
        raise TiueError(f"{where}{key + ': ' if key else ''}{what}.") from None


class AutoencoderRecipe(Recipe):
    """L1 + ``mse`` MSE on crops of rendered scenes, a light KL on the latents."""

    task: Literal["autoencoder"]
    world: WorldConfig = WorldConfig()
    model: dict[str, Any]
    pool: int = Field(6000, gt=0, description="scenes rendered once and cropped at random")
    crop: int = 64
    mse: float = 2.0
    kl: float = 1e-5
    deterministic: int = Field(
        500, ge=0, description="first updates without sampled latents and without the KL term"
    )
    freeze_encoder: bool = Field(False, description="train the decoder alone")
    latents_of: str | None = Field(
        None,
        description="an autoencoder whose latents this one, of another shape, learns to keep, so "
        "that teachers and students of the first go on with the second; `stickers` is shipped",
    )
    equivariance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of updates whose latents are halved in size and decoded to the scene "
        "halved (EQ-VAE, arXiv:2502.09509): latents that a diffusion model learns sooner",
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="noise on the latents, in units of their deviation: a decoder that "
        "has seen it paints calmly from latents that a UNet made",
    )
    smudge: str | None = Field(
        None,
        description="a teacher through whose guesses half of every batch is decoded, so that the "
        "decoder learns what is meant by a soft latent",
    )
    smudge_range: tuple[int, int] = Field((50, 500), description="noise it guesses from")
    painted: str | None = Field(
        None,
        description="a student whose latents are decoded as well, half as many as a batch: nobody "
        "knows what they should show, so the critic alone says how sharp; colours and places stay "
        "those of that student's own decoder",
    )
    edges: float = Field(0.0, ge=0, description="weight of the L1 between neighbours' differences")
    adversarial: float = Field(0.0, ge=0, description="weight of the critic of patches")
    likeness: float = Field(1.0, ge=0, description="weight of the L1 in what that critic sees")
    critic_learning_rate: float = 1e-3
    init: str | None = Field(
        None, description="an autoencoder to go on from, as wide or narrower; `stickers` is shipped"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AutoencoderRecipe:
        if self.painted and not self.adversarial:
            raise ValueError("painted latents are shown to the critic alone: set `adversarial`")
        return self


class JudgeRecipe(Recipe):
    """Which things are there, and on which background."""

    task: Literal["judge"]
    world: WorldConfig = WorldConfig()
    channels: tuple[int, ...] = (32, 48, 64, 96)
    pool: int = 12000
    spoiled: float = Field(
        0.0, ge=0, lt=1, description="share of a batch that is spoiled and shows nothing"
    )


class TeacherRecipe(Recipe):
    """A text-conditioned diffusion model with Stable Diffusion's topology, from scratch."""

    task: Literal["teacher"]
    world: WorldConfig = WorldConfig()
    autoencoder: str = Field(description="a diffusers folder, or `stickers` for the shipped one")
    init: str | None = Field(None, description="a teacher whose weights this one goes on from")
    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    max_tokens: int = 32
    vocabulary: int = 512
    pool: int = Field(6000, gt=0, description="scenes that batches are drawn from")
    fresh: int = Field(
        8, ge=0, description="scenes of the pool that every update replaces by new ones"
    )
    drop_prompt: float = Field(0.1, ge=0, le=1)
    min_snr_gamma: float | None = Field(
        5.0, description="weight min(SNR, gamma) / SNR on the noise error; null = plain"
    )


class DrawnRecipe(Recipe):
    """A one-pass student of the stickers world, taught by what it draws (``stickers/posed.py``)."""

    task: Literal["drawn"]
    world: WorldConfig = WorldConfig()
    student: str = Field(description="where it begins: a student's folder; `stickers` is shipped")
    reach: float = Field(
        0.25, gt=0, le=1, description="share of place, size and tilt that is drawn at first"
    )
    grown: float = Field(
        0.5, ge=0, le=1, description="share of the updates in which that grows to all; 0 = at once"
    )
    reader: float = Field(
        0.1, ge=0, description="weight of a linear layer that reads the pose off the encoder"
    )
    pixels: float = Field(
        0.0, ge=0, description="weight of the distance between pictures, of values and of edges"
    )
    pixels_of: int = Field(8, gt=0, description="pictures of a batch that are compared so")
