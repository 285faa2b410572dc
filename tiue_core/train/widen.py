"""Wider networks that begin as the same function (Net2Net, arXiv:1511.05641).

Every channel becomes r equal neighbours: what makes them is repeated, what reads them is repeated
and divided by r. Neighbours stay in one group, so GroupNorm sees the statistics it saw. A little
noise that cancels among the readers' copies lets the neighbours part ways when they learn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import TiueError

NOISE = 0.2  #: of the readers' own deviation


def widened(
    narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """``narrow``'s weights at the shapes of ``wide``, the state of the same network, but wider.

    Raises:
        TiueError: the networks differ in more than whole multiples of their widths.
    """
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, target in wide.items():
        if name not in narrow and ".conv_shortcut." in name:  # the widths part here: was identity
            result[name] = _identity(narrow, name, target)
            continue
        if name not in narrow or narrow[name].ndim != target.ndim:
            raise TiueError(f"{name} has no counterpart: only widths may differ.")
        result[name] = _fit(name, narrow[name].float(), target, generator)
        if ".to_q." in name:  # attention's scale falls by sqrt(r), its inner product grows by r
            result[name] = result[name] / (len(target) / len(narrow[name])) ** 0.5
    return result


def _identity(narrow: Mapping[str, Tensor], name: str, target: Tensor) -> Tensor:
    """A shortcut's convolution that copies channels, where the narrow network added its input."""
    if name.endswith("bias"):
        return torch.zeros_like(target)
    before = narrow[name.replace("conv_shortcut", "conv1")].shape[1]
    rows, columns = (size // before for size in target.shape[:2])
    eye = torch.eye(before).repeat_interleave(rows, 0).repeat_interleave(columns, 1) / columns
    return eye[:, :, None, None]


def _fit(name: str, weight: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    for dim, (before, after) in enumerate(zip(weight.shape, target.shape, strict=True)):
        times, rest = divmod(after, before)
        if rest or not times:
            raise TiueError(f"{name} is {before} wide and cannot become {after}: use multiples.")
        if times == 1:
            continue
        repeated = weight.repeat_interleave(times, dim)
        if dim == 1:  # what reads
            repeated = repeated / times
            noise = torch.randn(repeated.shape, generator=generator) * repeated.std() * NOISE
            shares = noise.unflatten(1, (before, times))
            repeated = repeated + (shares - shares.mean(2, keepdim=True)).flatten(1, 2)
        weight = repeated
    return weight
