"""The training loop all stages share: resume, schedule, moving average, logs, samples.

A stage is a ``Task``; everything random in an update comes from the generator the loop hands it,
seeded by (recipe seed, update, process).
"""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image
from torch import nn

from ..errors import TiueError
from . import checkpoint
from .optimizers import LossError, lr_lambda
from .recipe import Recipe

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  #: ways of accelerate that this loop has not


class Stopped(TiueError):
    """Somebody asked for an end; the checkpoint has all that was done."""


class Task(ABC):
    """One stage of training: every hook that the loop calls."""

    modules: Mapping[str, nn.Module]  #: what learns and is saved
    averaged: tuple[str, ...] = ()  #: names of the modules that get a moving average
    optimizers: dict[str, torch.optim.Optimizer]
    shared_draws = False  #: every process draws for all of them and takes its share (``draws``)

    @abstractmethod
    def prepare(self, accelerator: Accelerator) -> None:
        """Move to the accelerator's device. Called once, after a checkpoint was loaded."""

    @abstractmethod
    def update(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One update of everything that learns; returns scalars for the log."""

    @abstractmethod
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image | None:
        """A picture that shows how far it has come."""

    @abstractmethod
    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        """Write the result so that it loads without the trainer."""

    def validate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Measurements of what it paints, for the log; asked for by ``validate_every``."""
        return {}


Estimate = Callable[[Any, Accelerator], list[str]]  #: of a task: lines on memory and time


def generator_for(recipe: Recipe, step: int, process: int = 0) -> torch.Generator:
    """The generator of one update: its state depends on nothing that happened before."""
    seed = (recipe.seed * 1_000_003 + step) * 1_009 + process
    return torch.Generator().manual_seed(seed)


class Average:
    """Exponential moving average with the authors' ramp, decay min((1 + n) / (10 + n), decay)."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        self.decay = decay
        self.modules = {name: copy.deepcopy(module).eval() for name, module in modules.items()}
        for module in self.modules.values():
            for parameter in module.parameters():
                parameter.grad = None

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module], step: int) -> None:
        decay = min((1 + step) / (10 + step), self.decay)
        for name, average in self.modules.items():
            pairs = zip(average.parameters(), modules[name].parameters(), strict=True)
            learned = [(a.data, p.data) for a, p in pairs if p.requires_grad]
            targets, sources = map(list, zip(*learned, strict=True))
            torch._foreach_lerp_(targets, sources, 1 - decay)


def accelerator_for(recipe: Recipe) -> Accelerator:
    for kind in SHARDED:  # what `accelerate launch` says of its config
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("true", "1"):
            raise TiueError(
                f"accelerate is set to {kind}, but this trainer shards nothing, every process "
                "holds the networks whole: choose multi-GPU in `accelerate config`."
            )
    project = ProjectConfiguration(
        project_dir=str(recipe.out), logging_dir=str(recipe.out / "logs")
    )
    tracker = "tensorboard" if find_spec("tensorboard") else None
    if tracker is None:
        warnings.warn(
            "TensorBoard is not installed, only log.jsonl is written: pip install 'tiue[train]'",
            stacklevel=2,
        )
    return Accelerator(mixed_precision=recipe.precision, log_with=tracker, project_config=project)


def train(
    recipe: Recipe,
    make_task: Callable[[Any], Task],
    *,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    announce: Callable[[str], None] | None = None,
    estimate: Estimate | None = None,
) -> Path:
    """Run ``recipe`` from its last checkpoint to its end; returns the folder of the result.

    Args:
        progress: called with (updates done, updates in all, the log's values).
        stop: asked before every update.
        announce: told the lines of ``estimate``, before a run begins; not where one goes on.

    Raises:
        Stopped: ``stop`` said so before an update.
        LossError: a loss is no number. Either way a checkpoint has all updates so far, and the
            result what they were good for.
    """
    accelerator = accelerator_for(recipe)
    recipe.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    task = make_task(recipe)
    averages = Average({name: task.modules[name] for name in task.averaged}, recipe.ema)
    shadows = averages.modules if recipe.ema else {}
    folder = recipe.out / "checkpoints"
    about = recipe.model_dump(mode="json")
    networks = task.modules, shadows, task.optimizers
    scaler = accelerator.scaler
    start = checkpoint.load_latest(folder, *networks, about, scaler=scaler)
    bases = {name: each.param_groups[0]["lr"] for name, each in task.optimizers.items()}
    if estimate and announce and start == 0 and accelerator.is_main_process:
        for line in estimate(task, accelerator):
            announce(line)
    task.prepare(accelerator)
    for name, each in task.optimizers.items():  # fp16 needs its scaler between the two
        task.optimizers[name] = accelerator.prepare_optimizer(each)
    for module in averages.modules.values():
        module.to(accelerator.device)
    accelerator.init_trackers("")
    shown = {**task.modules, **shadows}

    def save(done: int) -> None:
        checkpoint.save(folder, done, *networks, about, keep=recipe.keep, scaler=scaler)

    clock, since = time.perf_counter(), start
    result = recipe.out / "result"
    for step in range(start, recipe.steps):
        if stop():
            save(step)
            raise Stopped(f"stopped after {step} of {recipe.steps} updates")
        for name, each in task.optimizers.items():
            for group in each.param_groups:
                group["lr"] = bases[name] * lr_lambda(recipe, step)
        process = 0 if task.shared_draws else accelerator.process_index
        try:
            logs = task.update(step, generator_for(recipe, step, process))
        except LossError as error:
            if accelerator.is_main_process and step:
                task.export(shown, result)
            raise LossError(f"At update {step + 1} of {recipe.steps} {error}") from None
        if recipe.ema:
            averages.update(task.modules, step)
        done = step + 1
        if done % recipe.log_every == 0:
            values = {name: float(_mean(accelerator, value)) for name, value in logs.items()}
            now = time.perf_counter()
            if validates(recipe, done) and accelerator.is_main_process:
                values.update(task.validate(shown))
            values["samples_per_second"] = (done - since) * recipe.batch_size / (now - clock)
            clock, since = now, done
            accelerator.log(values, step=done)
            if accelerator.is_main_process:
                with (recipe.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": done, **values}) + "\n")
                if progress:
                    progress(done, recipe.steps, values)
        if accelerator.is_main_process:
            if done % recipe.checkpoint_every == 0 or done == recipe.steps:
                save(done)
            if done % recipe.sample_every == 0 or done == recipe.steps:
                _save_sample(task, shown, recipe.out / "samples", done)
    if accelerator.is_main_process:
        task.export(shown, result)
    accelerator.end_training()
    return result


def validates(recipe: Recipe, done: int) -> bool:
    """Whether a line of the log carries measurements of the pictures."""
    every = getattr(recipe, "validate_every", 0)
    return bool(every) and done // every > (done - recipe.log_every) // every


def _mean(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.detach().float(), reduction="mean")


@torch.no_grad()
def _save_sample(task: Task, shown: Mapping[str, nn.Module], folder: Path, step: int) -> None:
    picture = task.sample(shown)
    if picture is not None:
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{step:07d}.png")
