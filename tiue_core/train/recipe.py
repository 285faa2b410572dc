"""Recipes: what a training run is, as YAML checked by pydantic.

One file is one stage. Stages are made by the same loop (``loop.py``) and differ in their task:
``autoencoder``, ``judge``, ``teacher`` (a diffusion model from scratch) and ``distill`` (a one-pass
student from a teacher). A recipe for Stable Diffusion 2.1 is another YAML file, not other code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from ..errors import TiueError
from .recipe_scratch import (
    AutoencoderRecipe,
    DrawnRecipe,
    JudgeRecipe,
    Recipe,
    TeacherRecipe,
    WorldConfig,
    check_levels,
    checked,
)


class DistillRecipe(Recipe):
    """Image-free distillation into one pass: VSD with a LoRA teacher, as the authors ran it.

    The defaults are the authors' (fp16, learning rates 1e-6 and 1e-3, guidance 4.5, EMA 0.9999);
    the miniature's recipe says what it changes and why.
    """

    task: Literal["distill"]
    teacher: str = Field(description="a diffusers folder or hub id")
    prompts: str | None = Field(
        None,
        description="a file: text (a prompt a line), .jsonl (JourneyDB's too), .parquet or .csv; "
        "or hub:OWNER/NAME[:SPLIT]",
    )
    prompt_column: str | None = Field(None, description="where they are in jsonl and tables")
    embeddings: Path | None = Field(
        None, description="folder that keeps the prompts' embeddings; null = the text encoder runs"
    )
    accumulate: int = Field(
        1, ge=1, description="parts of `batch_size` whose gradients make one update"
    )
    world: WorldConfig | None = Field(None, description="or prompts made by the stickers world")
    decoders: int = Field(4, ge=1, description="K")
    timesteps: list[int] | None = Field(
        None, description="explicit timesteps, e.g. [999] for SwiftBrush's K = 1"
    )
    latent_size: int | None = None
    lora_learning_rate: float = 1e-3
    lora_rank: int = 64
    lora_alpha: int = 108
    lora_targets: list[str] = Field(["to_q", "to_v"])
    lora_updates: int = Field(1, ge=1, description="LoRA teacher updates per student update")
    guidance: float = 4.5
    vsd_range: tuple[int, int] = (20, 981)
    lora_range: tuple[int, int] = (0, 1000)
    shared_encoder: bool = Field(
        True, description="false: the same K steps in sequence, an encoder pass each (to compare)"
    )
    kl_weight: float = Field(0.1, ge=0)
    kl_batch: int | None = Field(
        None,
        gt=0,
        description="the KL term is summed over so many pictures; null = over `batch_size`, as the "
        "authors' code has it",
    )
    drop_prompt: float = Field(0.1, ge=0, le=1)
    imitate: int = Field(
        0,
        ge=0,
        description="first updates without VSD; they regress onto the teacher's samples (see "
        "`pairs`) or, without those, onto its own guided K-step loop. 0 as the authors",
    )
    lora_lead: int = Field(
        100, ge=0, description="updates before VSD starts at which its LoRA teacher starts"
    )
    vsd: float = Field(1.0, ge=0, description="weight of the score distillation")
    pairs: int = Field(
        0, ge=0, description="teacher samples made once; every update then starts from their noise"
    )
    pair_steps: int = Field(12, ge=1, description="DPM-Solver++ steps of such a sample")
    pairs_from: Path | None = Field(None, description="their folder; `pairs` of the run if null")
    regression: float = Field(
        0.0, ge=0, description="weight of the distance to the teacher's sample"
    )
    perceptual: float = Field(
        0.0,
        ge=0,
        description="weight of the same distance in what the teacher's encoder sees of both",
    )
    adversarial: float = Field(0.0, ge=0, description="weight of the critic's judgement")
    critic_learning_rate: float = 1e-3
    critic_range: tuple[int, int] = Field(
        (20, 501), description="noise levels at which the critic looks"
    )
    images: Path | None = Field(
        None, description="a folder of real images with metadata.jsonl (file_name, text)"
    )
    world_images: int = Field(0, ge=0, description="or so many scenes of `world`, rendered")
    images_from: Path | None = Field(
        None, description="folder that keeps the images' latents; `images` of the run if null"
    )
    images_share: float = Field(
        1.0, gt=0, le=1, description="share of the critic's real side that is images, if there are"
    )
    clip: float = Field(0.0, ge=0, description="weight of the CLIP term at first; falls to 0")
    clip_margin: float = Field(0.35, gt=0, lt=1, description="cosine that satisfies it (tau)")
    clip_model: str | None = Field(None, description="a CLIP folder or hub id with safetensors")
    gradient_checkpointing: bool = False
    weights: Literal["float32", "bfloat16"] = Field(
        "float32", description="what the networks are held in; bfloat16 where memory is short"
    )
    validate_every: int = Field(0, ge=0, description="updates between two measurements; 0 = none")
    validate_count: int = Field(64, ge=16, description="pictures a measurement")
    init: Path | None = Field(None, description="start the student's UNet from this folder")
    init_teacher: Path | None = Field(
        None,
        description="the UNet that `init` was made from: what `init` learned beyond it is laid on "
        "this teacher (a difference of weights, arXiv:2212.04089)",
    )
    low_rank: int = Field(
        0,
        ge=0,
        description="numbers of which the student's difference from the teacher is made, as "
        "adapters that begin as the nearest to `init`'s; 0 = all its weights learn",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DistillRecipe:
        if self.timesteps is not None and len(self.timesteps) != self.decoders:
            raise ValueError(f"decoders is {self.decoders} but timesteps lists {self.timesteps}")
        check_levels(self, "vsd_range", "lora_range", "critic_range")
        if (self.regression or self.perceptual or self.adversarial) and not self.pairs:
            raise ValueError(
                "regression, perceptual and adversarial look at teacher samples: set `pairs`"
            )
        if self.perceptual and (self.images or self.world_images):
            raise ValueError("perceptual wants the teacher's sample of the same noise, not images")
        if (self.images or self.world_images) and not self.adversarial:
            raise ValueError("images are shown to the critic: set `adversarial`")
        if self.clip and self.clip_model is None:
            raise ValueError("the CLIP term needs a model: set `clip_model`")
        if self.init_teacher and self.init is None:
            raise ValueError("init_teacher is what a student was made from: give that as `init`")
        if self.low_rank and self.init is None:
            raise ValueError("low_rank begins with what a student learned: give its UNet as `init`")
        if self.validate_every and self.world is None and self.clip_model is None:
            raise ValueError("validation needs `world` (its judge) or `clip_model`")
        return self


STYLE = {"prior": 0.0, "steps": 400}
"""A style may change everything: told what must stay, it keeps to the things it was shown on."""


class LoraRecipe(Recipe):
    """A LoRA for a one-pass student, from a folder of pictures (``train/lora``).

    ``steps`` counts the updates of the teacher's LoRA; two of the three ways add
    ``student_steps`` of the student's. The defaults are for Stable Diffusion and the miniature
    alike; `docs/lora.md` has what chose them.
    """

    task: Literal["lora"] = "lora"
    out: Path = Field(description="the LoRA file; the run is kept beside it until it is written")
    images: Path
    trigger: str | None = None
    student: str = "stickers"
    teacher: str | None = Field(None, description="what the student was made from, if not known")
    method: Literal["transfer", "one-pass", "paired"] = "transfer"
    rank: int = Field(16, gt=0)
    alpha: float = Field(16, gt=0)
    targets: list[str] = Field([
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
        "conv1", "conv2", "conv_shortcut", "time_emb_proj",
    ])  # fmt: skip
    init: Path | None = Field(None, description="a LoRA of the teacher, in kohya's names")
    steps: int = Field(600, ge=0)
    student_steps: int = Field(150, gt=0)
    batch_size: int = Field(8, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    student_learning_rate: float = Field(5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 10
    decay: float = 0.5
    mirror: bool = Field(False, description="learn from the mirror images too")
    style: bool = Field(False, description="a style: `STYLE`, where nothing else is said")
    prior: float = Field(1.0, ge=0, description="weight of staying as it was on other prompts")
    prior_prompts: Path | None = Field(None, description="those prompts, one a line")
    priors: int = Field(128, gt=0, description="how many pictures of them are kept")
    drop_prompt: float = Field(0.0, ge=0, le=1, description="share of pictures without caption")
    levels: tuple[int, int] = Field(
        (200, 1000), description="timesteps at which the teacher learns the pictures"
    )
    guidance: float = 2.0
    pairs: int = Field(128, gt=0, description="teacher samples that `paired` regresses onto")
    pair_steps: int = Field(12, ge=1)
    kl_weight: float = 0.001
    fake_learning_rate: float = 1e-3
    fake_drop_prompt: float = Field(0.1, ge=0, le=1)
    vsd_range: tuple[int, int] = (20, 981)
    gradient_checkpointing: bool = False
    log_every: int = Field(1, gt=0)
    checkpoint_every: int = Field(50, gt=0)
    sample_every: int = Field(100, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _as_a_style(cls, given: Any) -> Any:
        return {**STYLE, **given} if isinstance(given, dict) and given.get("style") else given

    @model_validator(mode="after")
    def _levels_rise(self) -> LoraRecipe:
        check_levels(self, "levels", "vsd_range")
        return self


RECIPES: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "judge": JudgeRecipe,
    "teacher": TeacherRecipe,
    "distill": DistillRecipe,
    "drawn": DrawnRecipe,
    "lora": LoraRecipe,
}


def load_recipe(file: Path) -> Recipe:
    """Read and check a recipe. Relative paths in it are taken from the working directory."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TiueError(
            f"Recipe {file} cannot be read ({error.strerror}): check the path."
        ) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise TiueError(f"Recipe {file}{line} is not YAML: check the indentation there.") from None
    task = content.get("task") if isinstance(content, dict) else None
    if task not in RECIPES:
        raise TiueError(f"Recipe {file} has task {task!r}: use one of {', '.join(RECIPES)}.")
    return checked(RECIPES[task], content, f"Recipe {file}: ")


def data_seed(recipe: Recipe) -> int:
    """The seed of what is learned from, apart from the seed of the learning."""
    return recipe.seed if recipe.data_seed is None else recipe.data_seed
