"""Randomness that does not depend on how a batch is shared out.

Every draw is made for the whole batch of an update, and a process, or one of the parts of its batch
whose gradients are accumulated, takes its own rows. So one process with 16 samples, two with 8 and
one that accumulates twice 8 all see the same update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """``generator`` is at the same state everywhere; ``share`` of ``shares`` is taken."""

    generator: torch.Generator
    share: int = 0
    shares: int = 1


Source = torch.Generator | Draws | None  #: a generator alone, or torch's own, is the only share


def integers(source: Source, low: int, high: int, count: int) -> Tensor:
    """Uniform whole numbers in [low, high), (count,)."""
    generator, total, mine = _share(source, count)
    return torch.randint(low, high, (total,), generator=generator)[mine]


def normal(source: Source, shape: tuple[int, ...]) -> Tensor:
    """N(0, 1); the first of ``shape`` is the batch."""
    generator, total, mine = _share(source, shape[0])
    return torch.randn((total, *shape[1:]), generator=generator)[mine]


def uniform(source: Source, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [0, 1); the first of ``shape`` is the batch."""
    generator, total, mine = _share(source, shape[0])
    return torch.rand((total, *shape[1:]), generator=generator)[mine]


def _share(source: Source, count: int) -> tuple[torch.Generator | None, int, slice]:
    if not isinstance(source, Draws):
        return source, count, slice(None)
    first = source.share * count
    return source.generator, source.shares * count, slice(first, first + count)
