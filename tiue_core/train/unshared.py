"""The loop that TiUE leaves out, to compare with: an encoder pass for each of the K steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule import OneWaySchedule
from ..unet import SplitUNet


def sequential(
    student: SplitUNet, schedule: OneWaySchedule, noise: Tensor, prompt_embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """K whole passes, each on the latents of the one before (Eq. 7 to 10).

    Returns the K predictions (K, B, C, h, w) and z_0 (B, C, h, w), in float32.
    """
    predictions, z = [], noise
    steps = zip(schedule.timesteps, schedule.coefficients.tolist(), strict=True)
    for timestep, (a, b) in steps:
        features = student.encode(z, timestep, prompt_embeds)
        predictions.append(student.decode(features, timestep[None], prompt_embeds)[0].float())
        z = a * z + b * predictions[-1]
    return torch.stack(predictions), z
