"""All stages of a series in a row: `tiue stickers make`.

A series is a folder of recipes whose names begin with their place in it. What is done is left as
it is, what was interrupted goes on from its checkpoint. The time is estimated beforehand: for a
stage that has run, from its own log; for others, from the work of its networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..core.schedule import STEPS
from ..errors import TiueError
from ..shared.measure import matmul_rate
from .recipe import (
    AutoencoderRecipe,
    DistillRecipe,
    DrawnRecipe,
    JudgeRecipe,
    Recipe,
    TeacherRecipe,
    load_recipe,
)
from .run import run

RECIPES = Path(__file__).parents[1] / "stickers" / "recipes"
SHIPPED = "stickers-teacher"  #: in a series that has a teacher of its own, that one is meant
BACKWARD = 3  #: a forward pass with its backward, in forward passes
DECODER = 0.65  #: of a UNet's work
SHARE = 0.15  #: of a large product's speed, that a stage of small networks reaches on the whole


@dataclass(frozen=True)
class Stage:
    """One recipe of a series; ``done`` of its updates are made, ``rate`` samples/s were seen."""

    name: str
    recipe: Recipe
    done: int
    rate: float | None
    finished: bool

    @property
    def left(self) -> int:
        """Samples still to be learned from."""
        return 0 if self.finished else (self.recipe.steps - self.done) * self.recipe.batch_size


def stages(folder: Path = RECIPES) -> list[Stage]:
    """The series in ``folder``, in order.

    Raises:
        TiueError: there is none, or a recipe is not one.
    """
    files = [file for file in folder.glob("*.yaml") if file.stem.partition("-")[0].isdigit()]
    if not files:
        raise TiueError(f"{folder} holds no recipes that begin with a number: 1-name.yaml, ...")
    files.sort(key=lambda file: int(file.stem.partition("-")[0]))
    recipes = [load_recipe(file) for file in files]
    teacher = next((r.out / "result" for r in recipes if isinstance(r, TeacherRecipe)), None)
    own = [_with_own_teacher(recipe, teacher) for recipe in recipes]
    return [_stage(file.stem, recipe) for file, recipe in zip(files, own, strict=True)]


def _with_own_teacher(recipe: Recipe, teacher: Path | None) -> Recipe:
    """The shipped teacher stands in a recipe that is run alone; the series has its own."""
    if teacher is None:
        return recipe
    named = {
        key: str(teacher) for key in ("teacher", "smudge") if getattr(recipe, key, None) == SHIPPED
    }
    return recipe.model_copy(update=named)


def _stage(name: str, recipe: Recipe) -> Stage:
    found = sorted((recipe.out / "checkpoints").glob("step-*"))
    done = int(found[-1].name.removeprefix("step-")) if found else 0
    finished = done >= recipe.steps and (recipe.out / "result").is_dir()
    return Stage(name, recipe, done, _seen_rate(recipe.out / "log.jsonl"), finished)


def _seen_rate(log: Path) -> float | None:
    """The median samples per second of a run's last lines."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()[-10:]
        rates = sorted(json.loads(line)["samples_per_second"] for line in lines)
    except (OSError, ValueError, KeyError):
        return None
    return rates[len(rates) // 2] if rates else None


def plan(series: list[Stage], device: torch.device) -> list[tuple[str, float]]:
    """Every stage and the seconds it will take, 0 for those that are done."""
    unet = next((s.recipe.unet for s in series if isinstance(s.recipe, TeacherRecipe)), None)
    size = 4096 if device.type == "cuda" else 768
    speed = SHARE * matmul_rate(device, torch.bfloat16, size)
    return [
        (s.name, s.left / (s.rate or speed / sample_flops(s.recipe, unet)) + _ahead(s, unet, speed))
        for s in series
    ]


def sample_flops(recipe: Recipe, unet: dict[str, Any] | None = None) -> float:
    """FLOPs to learn from one sample, roughly."""
    if isinstance(recipe, AutoencoderRecipe):
        from diffusers import AutoencoderKL

        image = torch.empty(1, 3, recipe.crop, recipe.crop, device="meta")
        return BACKWARD * _count(lambda: AutoencoderKL(**recipe.model), image)
    if isinstance(recipe, JudgeRecipe):
        from ..stickers.judge import Judge

        image = torch.empty(1, 3, 64, 64, device="meta")
        kinds = recipe.world.kinds, recipe.world.backgrounds
        return BACKWARD * _count(lambda: Judge(*kinds, recipe.channels), image)
    if isinstance(recipe, TeacherRecipe):
        return BACKWARD * _unet_flops(recipe.unet)
    one = _unet_flops(unet)
    if isinstance(recipe, DrawnRecipe):
        return one * BACKWARD * _passes(STEPS)
    assert isinstance(recipe, DistillRecipe)
    passes = _passes(recipe.decoders)
    eyes = 2 * BACKWARD * (1 - DECODER) if recipe.adversarial or recipe.perceptual else 0
    vsd = (4 + BACKWARD * recipe.lora_updates) * max(0, 1 - recipe.imitate / recipe.steps)
    return one * (BACKWARD * passes + eyes + vsd)


def _passes(decoders: int) -> float:
    """An encoder and so many decoders, in passes of a whole UNet."""
    return (1 - DECODER) + decoders * DECODER


def _ahead(stage: Stage, unet: dict[str, Any] | None, speed: float) -> float:
    """Seconds of the teacher samples that a distillation makes before it starts."""
    recipe = stage.recipe
    if not isinstance(recipe, DistillRecipe) or stage.finished or stage.done:
        return 0.0
    folder = recipe.pairs_from or recipe.out / "pairs"
    here = 128 * len(list(folder.glob("*.safetensors")))
    return 2 * _unet_flops(unet) * recipe.pair_steps * max(0, recipe.pairs - here) / speed


def _unet_flops(unet: dict[str, Any] | None) -> float:
    from diffusers import UNet2DConditionModel

    if unet is None:
        file = RECIPES.parent / "student" / "unet" / "config.json"
        unet = {k: v for k, v in json.loads(file.read_text()).items() if k[0] != "_"}
    side, channels = unet["sample_size"], unet["in_channels"]
    latents = torch.empty(1, channels, side, side, device="meta")
    words = torch.empty(1, 32, unet["cross_attention_dim"], device="meta")
    timestep = torch.zeros(1, device="meta")
    return _count(lambda: UNet2DConditionModel(**unet), latents, timestep, words)


def _count(make: Callable[[], Any], *inputs: Any) -> float:
    with torch.device("meta"):
        module = make()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        module(*inputs)
    return float(flops.get_total_flops())


def make(
    series: list[Stage],
    progress: Callable[..., None] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run what is not finished, one after the other; returns the folders of all results."""
    results = []
    for stage in series:
        if not stage.finished:
            announce(f"{stage.name}: {stage.done} of {stage.recipe.steps} updates are made")
            run(stage.recipe, progress, announce)
        results.append(stage.recipe.out / "result")
    return results
