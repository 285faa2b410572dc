"""Pictures that show nothing any more: what a judge must not call a thing.

A classifier that saw good pictures alone goes by colour and calls a smudge by its name. So a part
of what it learns from is spoiled, each picture in one of three ways that students and teachers
fail in: smeared beyond its parts, bent out of shape, or laid half through half with another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMEARED = (5, 11)  #: pixels a side that are left of a picture
BENT = (0.16, 0.3)  #: deviation of the bending, in half pictures
SOFT = (20, 45)  #: pixels a side that are left of a bent one
MEETS = 4  #: points a side at which the bending is drawn


def spoiled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W), a third of the batch in each way, in an order that is drawn."""
    order = torch.randperm(len(images), generator=generator)
    ways = (smeared, bent, mingled)
    result = torch.empty_like(images)
    for rows, way in zip(order.chunk(len(ways)), ways, strict=False):
        result[rows] = way(images[rows], generator)
    return result


def smeared(images: Tensor, generator: torch.Generator) -> Tensor:
    """Down to a few pixels and back."""
    side = int(torch.randint(*SMEARED, (), generator=generator))
    small = F.interpolate(images, (side, side), mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(-1, 1)


def bent(images: Tensor, generator: torch.Generator) -> Tensor:
    """Along a smooth random field, each its own; a little smeared, as what students bend is."""
    count, low, high = len(images), *BENT
    strength = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
    field = strength * torch.randn(count, 2, MEETS, MEETS, generator=generator)
    field = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
    still = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(still, list(images.shape), align_corners=False)
    moved = F.grid_sample(
        images, grid + field.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    side = int(torch.randint(*SOFT, (), generator=generator))
    small = F.interpolate(moved, (side, side), mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bilinear")


def mingled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each with a share of the next one's upside-down, as two minds about one thing."""
    share = 0.35 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return share * images + (1 - share) * images.flip(-2).roll(1, 0)
