"""3x3 convolutions on a CPU in Winograd's form: fewer multiplications, more additions.

F(m x m, 3x3) of Lavin & Gray (arXiv:1509.09308). A tile of m x m outputs sees (m + 2) x (m + 2)
inputs d:

    Y = A^T [(G g G^T) * (B^T d B)] A

with the kernel g transformed once, and "*" elementwise over tiles but a matrix product over
channels: 4 multiplications a pixel for m = 2 and 2.25 for m = 4, instead of 9. Read as vectors,
both transforms of a tile are matrix products too: with B^T (x) B^T and A^T (x) A^T from the left.
So a chunk of tiles is two copies and three products.

After a nearest-neighbour doubling D, pixels come in pairs, and with B^T D in the place of B^T one
of the rows is zero: the doubling and its convolution take 9/4 or 25/16 multiplications a pixel.

Rounding, relative: in float32 4e-7 for m = 2 and 3e-6 for m = 4, 1e-6 for the convolution itself;
in bfloat16 5e-3, 3e-2 and 2e-3, so m = 4 is left to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 512  #: tiles of a chunk: enough rows for a matrix product, and not far beyond the cache

_B_T = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_A_T = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


@dataclass(frozen=True)
class Form:
    """F(m x m, 3x3), of an input or of its doubling."""

    m: int
    doubled: bool = False

    @property
    def step(self) -> int:
        """Pixels of the input from one tile to the next."""
        return self.m // 2 if self.doubled else self.m

    def fits(self, x: Tensor) -> bool:
        """Whether an input (N, C, H, W) falls into whole tiles, and rounding is small enough."""
        whole = x.shape[2] % self.step == x.shape[3] % self.step == 0
        return whole and (self.m == 2 or x.dtype != torch.bfloat16)

    @lru_cache(maxsize=16)  # noqa: B019  of four forms at most
    def sides(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """B^T, G and A^T."""
        with torch.inference_mode(False):
            inward, G, outward = (
                torch.tensor(one[self.m], dtype=torch.float64) for one in (_B_T, _G, _A_T)
            )
            if self.doubled:
                pairs = torch.arange(self.m + 2).add(1) // 2  # 0 1 1 2 2 3: a pixel's source
                inward = inward @ F.one_hot(pairs).double()
                left = inward.abs().sum(1) > 0
                inward, G, outward = inward[left], G[left], outward[:, left]
            return inward.to(dtype), G.to(dtype), outward.to(dtype)

    @lru_cache(maxsize=16)  # noqa: B019
    def transforms(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """B^T (x) B^T and A^T (x) A^T."""
        with torch.inference_mode(False):
            inward, _, outward = self.sides(torch.float64)
            return torch.kron(inward, inward).to(dtype), torch.kron(outward, outward).to(dtype)


def fitting(x: Tensor, doubled: bool = False) -> Form | None:
    """The form of fewest multiplications that fits an input (N, C, H, W)."""
    return next((form for m in (4, 2) if (form := Form(m, doubled)).fits(x)), None)


def transformed(weight: Tensor, form: Form) -> Tensor:
    """G g G^T of a kernel (O, C, 3, 3), as (products, C, O)."""
    _, G, _ = form.sides(torch.float64)
    kernels = torch.einsum("ai,bj,ocij->abco", G, G, weight.detach().double())
    return kernels.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """conv2d(x, g, bias, padding=1), or of x doubled, with ``transformed`` g; channels last.

    Raises:
        ValueError: the sides of x (N, C, H, W) are no multiples of a tile's.
    """
    (N, _, H, W), step, m = x.shape, form.step, form.m
    if H % step or W % step:
        raise ValueError(f"{H} x {W} is not of whole tiles of {step} x {step}")
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
    tall, wide = H // step, W // step  # in tiles
    out = x.new_empty((N, m * tall, m * wide, kernels.shape[2]))
    high = min(tall, max(1, ROWS // wide))  # rows of tiles at a time
    several = max(1, ROWS // (high * wide)) if high == tall else 1  # images at a time
    for n in range(0, N, several):
        for row in range(0, tall, high):
            some = padded[n : n + several, step * row : step * (row + high) + 2]
            _chunk(some, kernels, bias, out[n : n + several, m * row : m * (row + high)], form)
    return out.permute(0, 3, 1, 2)


def _chunk(d: Tensor, kernels: Tensor, bias: Tensor | None, out: Tensor, form: Form) -> None:
    """Rows of padded inputs (N, ..., W + 2, C) to rows of outputs (N, ..., W', C')."""
    m, step, (n, row, column, channel) = form.m, form.step, d.stride()
    (N, tall, wide, out_channels), C = out.shape, d.shape[3]
    tall, wide = tall // m, wide // m  # in tiles
    inward, outward = form.transforms(d.dtype)
    a = int(inward.shape[1] ** 0.5)  # a tile sees a x a inputs
    strides = (row, column, n, step * row, step * column, channel)
    tiles = d.as_strided((a, a, N, tall, wide, C), strides).reshape(a * a, -1)
    products = torch.bmm(torch.mm(inward, tiles).view(len(inward), -1, C), kernels)
    pixels = torch.mm(outward, products.view(len(inward), -1))
    pixels = pixels.view(m, m, N, tall, wide, out_channels)
    written = out.view(N, tall, m, wide, m, out_channels).permute(2, 4, 0, 1, 3, 5)
    if bias is None:
        written.copy_(pixels)
    else:
        torch.add(pixels, bias, out=written)
