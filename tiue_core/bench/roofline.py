"""What the machine can do, measured in the same run: the rates that a share is a share of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..shared.measure import clock, matmul_rate

_BYTES = 1 << 28  # copied


@dataclass(frozen=True)
class Rates:
    matmul: float  # FLOP/s
    copy: float  # bytes/s, read and written


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few runs each."""
    source = torch.zeros(_BYTES // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    return Rates(
        matmul=matmul_rate(device, dtype),
        copy=2 * _BYTES / clock(lambda: target.copy_(source), device, 5),
    )
