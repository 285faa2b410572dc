"""The systems beside each other: what each does with a UNet to make one batch of latents.

Each is a function of (noise, prompts) that marks its stages, "encoder" and "decoders", with a
``Stages``. The loops are Stable Diffusion's own, stepped by diffusers' DDIM scheduler.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.forward_process import ddim_loop
from ..core.guidance import guide
from ..core.one_pass import one_pass
from ..core.schedule import OneWaySchedule
from ..core.unet import SplitUNet
from ..shared.measure import Stopwatch

GUIDED_STEPS = 50


class Stages(Stopwatch):
    """Seconds by stage; and the process's CPU seconds, "cpu"."""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        used = time.process_time()
        with super().__call__(part):
            yield
        self.seconds["cpu"] += time.process_time() - used


@dataclass(frozen=True)
class System:
    """A row of the table."""

    name: str
    about: str
    paint: Callable[[Tensor, Tensor, Stages], Tensor]
    as_written: bool = False  # without packed weights and cheap doubling
    as_run: bool = False  # and in float32, in PyTorch's own layout and allocator
    decoder: str = "vae"  # or "tiny", TAESD
    decoders: int = 1  # UNet decoders at once
    loops: int = 1  # UNets one after the other
    times: dict[str, int] | None = None  # stages of which one was run, and how many there are
    rows: int = 1  # UNet rows per image: 2 with guidance


Paint = Callable[[Tensor, Tensor, Stages], Tensor]


def one_way(unet: SplitUNet, schedule: OneWaySchedule) -> Paint:
    """Ours: encode once, decode K, combine."""

    def paint(noise: Tensor, prompts: Tensor, stage: Stages) -> Tensor:
        return one_pass(unet, schedule, noise, prompts, stage=stage).latents

    return paint


def authors(unet: SplitUNet, scheduler: Any) -> Paint:
    """The authors' algorithm: features repeated, all predictions, the scheduler stepped K times."""
    scheduler = copy.deepcopy(scheduler)
    schedule = OneWaySchedule.from_config(scheduler)

    def paint(noise: Tensor, prompts: Tensor, stage: Stages) -> Tensor:
        with stage("encoder"):
            features = unet.encode(noise, schedule.timesteps[0], prompts)
        with stage("decoders"):
            predictions = unet.decode(features, schedule.timesteps, prompts)
            scheduler.set_timesteps(len(schedule), device=noise.device)
            z = noise
            for t, prediction in zip(scheduler.timesteps, predictions, strict=True):
                z = scheduler.step(prediction, t, z).prev_sample
            return z

    return paint


def loop(unet: SplitUNet, scheduler: Any, timesteps: list[int], guidance: float = 1.0) -> Paint:
    """A UNet per timestep; with guidance, of twice the rows."""
    schedule = OneWaySchedule.from_config(scheduler, timesteps=timesteps)

    def paint(noise: Tensor, prompts: Tensor, stage: Stages) -> Tensor:
        def predict(z: Tensor, t: Tensor) -> Tensor:
            rows, context = z, prompts
            if guidance != 1:
                rows, context = torch.cat([z, z]), torch.cat([torch.zeros_like(prompts), prompts])
            with stage("encoder"):
                features = unet.encode(rows, t, context)
            with stage("decoders"):
                prediction = unet.decode(features, t[None], context)[0]
                return prediction if guidance == 1 else guide(prediction, guidance)

        return ddim_loop(predict, schedule, noise)[1]

    return paint
