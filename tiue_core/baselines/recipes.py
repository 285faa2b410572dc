"""What diffusers has no sampler for: FasterDiffusion, rectified flow in one step, SwiftBrush.

Each takes a diffusers pipeline, noise (B, C, h, w) and prompts (B, N, D), and returns latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.guidance import guide
from ..core.unet import SplitUNet

KEY_STEPS = (0, 1, 2, 3, 5, 10, 15, 25, 35)  #: FasterDiffusion's, of 50


def faster_diffusion(
    pipe: Any,
    noise: Tensor,
    prompts: Tensor,
    against: Tensor,
    *,
    guidance: float,
    steps: int = 50,
    keys: Sequence[int] = KEY_STEPS,
    strength: float = 0.003,
) -> Tensor:
    """FasterDiffusion: the encoder at ``keys`` only, the decoders from one key to the next at once.

    Predictions between two keys come from the features of the first of them. The loop's own steps
    stay one after the other; before each with t < 500, ``strength`` times the noise is added, which
    gives back the detail that old features lose.

    Args:
        against: (B, N, D), the empty prompt.
    """
    unet, scheduler = SplitUNet(pipe.unet), pipe.scheduler
    scheduler.set_timesteps(steps, device=noise.device)
    context, z = torch.cat([against, prompts]), noise
    for first, last in pairwise([*keys, steps]):
        timesteps = scheduler.timesteps[first:last]
        features = unet.encode(torch.cat([z, z]), timesteps[0], context)
        for t, both in zip(timesteps, unet.decode(features, timesteps, context), strict=True):
            prediction = guide(both, guidance)
            if t < 500:
                z = z + strength * noise
            z = scheduler.step(prediction, t, z).prev_sample
    return z


def rectified_flow(pipe: Any, noise: Tensor, prompts: Tensor) -> Tensor:
    """InstaFlow: z_0 = noise + 1 * v, one Euler step from t = 1000 (not 999) to 0."""
    t = torch.tensor(1000.0, device=noise.device)
    return noise + pipe.unet(noise, t, encoder_hidden_states=prompts).sample


def one_step(pipe: Any, noise: Tensor, prompts: Tensor) -> Tensor:
    """SwiftBrush: x_0 = (z - sigma eps) / alpha at t = 999.

    Here alpha^2 + sigma^2 = 1, alpha^2 the cumulative product of the schedule. `TiuePipeline` with
    ``timesteps=[999]`` differs by stopping where Stable Diffusion's schedule does, at an alpha^2
    of 0.99915.
    """
    t = torch.tensor(999, device=noise.device)
    prediction = pipe.unet(noise, t, encoder_hidden_states=prompts).sample
    square = pipe.scheduler.alphas_cumprod[999].double()
    alpha, sigma = float(square.sqrt()), float((1 - square).sqrt())
    return (noise - sigma * prediction) / alpha
