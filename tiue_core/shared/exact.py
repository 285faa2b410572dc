"""The exact savings as tensor functions: what diffusers' blocks and the hosts' own share.

a   conv(concat(h, skip)) = conv_h(h) + conv_skip(skip): a skip's half is the same for all
    timesteps. A normalization group that straddles the border stays with h.
e   doubling, then a 3x3 convolution = a 2x2 convolution to four times the channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class NotUnderstoodError(Exception):
    """A layer does something that cannot be looked through. The message says what."""


def split_groups(channels: int, groups: int, h_channels: int) -> tuple[int, int]:
    """Where a GroupNorm over concat(h, skip) is cut.

    Args:
        channels: of concat(h, skip).
        groups: of the normalization.
        h_channels: of h.

    Returns:
        How many groups stay with h, the straddling one included, and their channels.

    Raises:
        NotUnderstoodError: nothing would be left for the skip.
    """
    width = channels // groups
    own = -(-h_channels // width)
    if own >= groups:
        raise NotUnderstoodError("a skip feature narrower than a normalization group")
    return own, own * width


def doubling_kernel(weight: Tensor) -> Tensor:
    """(C', C, 3, 3), applied after nearest-neighbour doubling, as (4 C', C, 2, 2) before it.

    Output row 2i + d sees the doubled rows 2i + d - 1 .. 2i + d + 1, which are the small rows
    i - 1, i, i for d = 0 and i, i, i + 1 for d = 1: two taps, of which one has the sum of two
    weights. The same for columns; the four parities are four groups of output channels.

    Raises:
        NotUnderstoodError: not a 3x3 convolution.
    """
    if weight.shape[2:] != (3, 3):
        raise NotUnderstoodError("an upsampler unlike Stable Diffusion's")
    taps = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)
    taps = taps.to(weight.device)  # (parity, tap, kernel)
    small = torch.einsum("dau,ebv,oiuv->deoiab", taps, taps, weight.double())
    return small.flatten(0, 2).to(weight.dtype)


def doubled(weight: Tensor) -> Tensor:
    """(C', C, 3, 3), applied after nearest-neighbour doubling, as the (C, C', 4, 4) of a transposed
    convolution of stride 2 before it: a small pixel is four doubled ones, and reaches as far."""
    return 4 * F.avg_pool2d(weight.transpose(0, 1).flip(2, 3), 2, 1, padding=1)


def interleaved(y: Tensor) -> Tensor:
    """What ``doubling_kernel`` gives, (N, 4 C, H + 1, W + 1), as (N, C, 2 H, 2 W)."""
    N, C, H, W = len(y), y.shape[1] // 4, y.shape[2] - 1, y.shape[3] - 1
    last = y.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    out = torch.empty((N, C, 2 * H, 2 * W), dtype=y.dtype, device=y.device, memory_format=layout)
    for parity, part in enumerate(y.chunk(4, 1)):
        d, e = divmod(parity, 2)
        out[:, :, d::2, e::2] = part[:, :, d : d + H, e : e + W]
    return out
