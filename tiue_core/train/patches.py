"""A critic of patches (pix2pix, arXiv:1611.07004) that keeps an autoencoder from being soft.

An average over what might have been there is the best answer to L1 and to MSE, and it is blurred.
No scene is, so a critic that looks at patches finds it out; its feature maps are a distance as
well (pix2pixHD, arXiv:1711.11585), which pulls to this scene's own edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchCritic(nn.Module):
    """Images (B, 3, H, W) -> feature maps, the last of which are the scores (B, 1, H/8, W/8)."""

    def __init__(self, widths: Sequence[int] = (32, 64, 96)):
        super().__init__()
        self.steps = nn.ModuleList()
        before = 3
        for width in widths:
            norm = nn.GroupNorm(8, width) if before != 3 else nn.Identity()
            conv = nn.Conv2d(before, width, 4, stride=2, padding=1)
            self.steps.append(nn.Sequential(conv, norm, nn.LeakyReLU(0.2)))
            before = width
        self.steps.append(nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, images: Tensor) -> list[Tensor]:
        seen = []
        for step in self.steps:
            images = step(images)
            seen.append(images)
        return seen


def apart(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean L1 between the feature maps of two sides, the scores left out."""
    return torch.stack(
        [F.l1_loss(f.float(), r.float()) for f, r in zip(fake[:-1], real[:-1], strict=True)]
    ).mean()


def edges(made: Tensor, wanted: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """L1 between the differences of neighbouring pixels, at several sizes; (B, C, H, W) each."""
    error, total = made - wanted, made.new_zeros(())
    for scale in scales:
        small = F.avg_pool2d(error, scale) if scale > 1 else error
        total = total + small.diff(dim=-1).abs().mean() + small.diff(dim=-2).abs().mean()
    return total / len(scales)
