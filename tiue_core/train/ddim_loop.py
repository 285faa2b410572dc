"""The loop that TiUE leaves out, to learn from and to compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.schedule import OneWaySchedule
from ..core.unet import SplitUNet


def ddim_loop(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: OneWaySchedule, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """``predict(z, timestep)`` K times, each on the latents of the one before (Eq. 7 to 10).

    Returns the K predictions (K, B, C, h, w) and z_0 (B, C, h, w).
    """
    predictions, z = [], noise
    steps = zip(schedule.timesteps, schedule.coefficients.tolist(), strict=True)
    for timestep, (a, b) in steps:
        predictions.append(predict(z, timestep))
        z = a * z + b * predictions[-1]
    return torch.stack(predictions), z


def sequential(
    student: SplitUNet, schedule: OneWaySchedule, noise: Tensor, prompt_embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """The student with an encoder pass for each of the K steps; returns as ``loop``, float32."""

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        features = student.encode(z, timestep, prompt_embeds)
        return student.decode(features, timestep[None], prompt_embeds)[0].float()

    return ddim_loop(predict, schedule, noise)
