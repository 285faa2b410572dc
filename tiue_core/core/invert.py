"""The noise whose one pass paints a given picture, found by gradient steps.

    noise = argmin over x of  mean (paint(x) - z_0)^2  +  prior * R(x)

One pass is one differentiable function of its noise, so no sampler is run backwards. R keeps x what
the encoder knows: each channel's mean 0 and deviation 1, and neighbours that do not know of each
other, at three scales (the noise regularization of StyleGAN2, Karras et al. 2020, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, RATE, PRIOR = 80, 0.1, 0.1  # what benchmarks/invert.py measures


def invert(
    paint: Callable[[Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    steps: int = STEPS,
    told: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Search from `noise` for one that paints `latents`, by Adam.

    Args:
        paint: noise to z_0, both (B, C, h, w); differentiable.
        latents: the picture's z_0, (B, C, h, w).
        noise: where to begin, N(0, 1), (B, C, h, w).
        told: called with the steps made and all.

    Returns:
        The noise, (B, C, h, w) float32, and the root mean square of what is still apart, (B,).
    """
    x = noise.detach().float().clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=RATE)
    for step in range(steps + 1):
        apart = (paint(x).float() - latents).square().mean((1, 2, 3))
        if step == steps:  # how good the last one is
            break
        (gradient,) = torch.autograd.grad((apart + PRIOR * unlike_noise(x)).sum(), x)
        x.grad = gradient
        adam.step()
        if told is not None:
            told(step + 1, steps)
    return x.detach(), apart.detach().sqrt()


def unlike_noise(x: Tensor) -> Tensor:
    """R, (B,): 0 for white noise of unit variance."""
    found = x.mean((2, 3)).square().mean(1) + (x.std((2, 3)) - 1).square().mean(1)
    for _ in range(3):
        for axis in (-1, -2):
            found = found + (x * x.roll(1, axis)).mean((1, 2, 3)).square()
        if min(x.shape[-2:]) < 4:
            break
        x = 2 * F.avg_pool2d(x, 2)  # of unit variance again
    return found
