"""Which noise should become a picture: of several the one whose one pass comes nearest to it.

A one-pass student paints one picture of each noise. Taught a picture from noises at random it would
smear all it is taught over one another; the nearest of several is conditional implicit maximum
likelihood estimation (arXiv:1809.09087, arXiv:2004.03590), and needs no teacher's sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..draws import normal


@torch.no_grad()
def nearest_noise(
    paint: Callable[[Tensor], Tensor], wanted: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """For each picture ``wanted``, in latents (B, C, h, w), of ``count`` noises the one that
    ``paint``, noise (B, C, h, w) to latents, brings nearest to it, by their mean difference."""
    best = wanted.new_full((len(wanted),), torch.inf)
    chosen = torch.empty_like(wanted)
    for _ in range(count):
        noise = normal(generator, tuple(wanted.shape)).to(wanted.device)
        error = (paint(noise) - wanted).abs().flatten(1).mean(1)
        nearer = error < best
        best = torch.where(nearer, error, best)
        chosen = torch.where(nearer[:, None, None, None], noise, chosen)
    return chosen
