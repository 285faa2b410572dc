"""What the machine can do, measured in the same run: the rates that a share is a share of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..savings.measure import clock

_SIDE = 2048  # of the matrices
_BYTES = 1 << 28  # copied


@dataclass(frozen=True)
class Rates:
    matmul: float  # FLOP/s
    copy: float  # bytes/s, read and written


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few runs each."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(_BYTES // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    return Rates(
        matmul=2 * _SIDE**3 / clock(lambda: a @ b, device, 5),
        copy=2 * _BYTES / clock(lambda: target.copy_(source), device, 5),
    )
