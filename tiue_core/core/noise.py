"""The noise that a picture starts from: its seed's alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def draw_noise(seeds: Iterable[int], shape: Sequence[int]) -> Tensor:
    """N(0, 1) noise, (len(seeds), *shape) float32 on the CPU, each row from its own seed alone.

    Drawn on the CPU whatever the device, so that a seed means the same image everywhere.
    """
    rows = [torch.randn((1, *shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(rows)
