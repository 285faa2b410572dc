"""3x3 convolutions on a CPU in Winograd's form: 16 multiplications for what otherwise takes 36.

F(2x2, 3x3) of Lavin & Gray (arXiv:1509.09308). A tile of 2x2 outputs sees 4x4 inputs d:

    Y = A^T [(G g G^T) * (B^T d B)] A

with the kernel g transformed once, and "*" elementwise over tiles but a matrix product over
channels, so that all tiles of a chunk are 16 matrix products. The transforms only add, so in
float32 the error is no larger than that of the convolution itself; in bfloat16, where what is
added is rounded again, it is two to three times as large.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
ROWS = 256  #: tiles that a matrix product should have; beyond a few of these the cache overflows


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of a kernel (O, C, 3, 3), as (16, C, O)."""
    G = torch.tensor(_G, dtype=torch.float64)
    kernels = torch.einsum("ai,bj,ocij->abco", G, G, weight.detach().double())
    return kernels.flatten(0, 1).to(weight.dtype).contiguous()


def fits(x: Tensor) -> bool:
    """Whether an input (N, C, H, W) falls into whole tiles."""
    return x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, g, bias, padding=1) for x (N, C, H, W), with ``transformed`` g; channels last.

    Raises:
        ValueError: H or W is odd.
    """
    if not fits(x):
        raise ValueError(f"{x.shape[2]} x {x.shape[3]} is odd: Winograd's tiles are 2 x 2")
    N, _, H, W = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
    out = x.new_empty((N, H, W, kernels.shape[2]))
    tiles = W // 2  # of one row
    high = min(H // 2, max(1, 2 * ROWS // tiles))  # rows of tiles at a time
    several = max(1, ROWS // (high * tiles)) if high == H // 2 else 1  # images at a time
    for n in range(0, N, several):
        for row in range(0, H, 2 * high):
            some = padded[n : n + several, row : row + 2 * high + 2]
            _chunk(some, kernels, bias, out[n : n + several, row : row + 2 * high])
    return out.permute(0, 3, 1, 2)


def _chunk(d: Tensor, kernels: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Inputs (N, H + 2, W + 2, C) to outputs (N, H, W, O), written into ``out``."""
    N, H, W, wide = out.shape
    C, h, w = d.shape[3], H // 2, W // 2
    rows = d.new_empty((4, N, h, W + 2, C))
    _inward([d[:, i : i + H - 1 : 2] for i in range(4)], list(rows))
    tiles = d.new_empty((4, 4, N, h, w, C))
    _inward([rows[..., j : j + W - 1 : 2, :] for j in range(4)], list(tiles.unbind(1)))
    products = torch.bmm(tiles.view(16, -1, C), kernels)
    if bias is not None:
        products[5] += bias  # the one place of 16 that adds once to each of the four outputs
    sums = d.new_empty((2, 4, N, h, w, wide))
    _outward(list(products.view(4, 4, N, h, w, wide)), list(sums))
    pixels = out.view(N, h, 2, w, 2, wide).permute(2, 4, 0, 1, 3, 5)  # parities first
    _outward(list(sums.unbind(1)), list(pixels.unbind(1)))


def _inward(d: list[Tensor], out: list[Tensor]) -> None:
    """B^T along one axis."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _outward(m: list[Tensor], out: list[Tensor]) -> None:
    """A^T along one axis."""
    torch.add(m[0], m[1], out=out[0]).add_(m[2])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])
