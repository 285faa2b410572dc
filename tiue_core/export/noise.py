"""torch's normal noise without torch: the same seed, the same noise, in numpy.

``torch.randn`` on a CPU, from 16 numbers on, is Mersenne Twister and Box-Muller in blocks of 16:

    u         24 random bits / 2^24, float32, one per number
    radius    sqrt(-2 ln(1 - u[j]))                                        j = 0..7
    angle     2 pi u[j + 8]
    out       radius cos(angle) at j, radius sin(angle) at j + 8

If the count is no multiple of 16, the last 16 numbers are drawn once more, with u that follow. The
page's ``noise.mjs`` says the same in JavaScript. Roots and angles are rounded to float32 where
torch rounds them; torch's own logarithm and sine are vectorized and a few units in the last place
off, by processor, so noise is the same to 5e-7, not to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import pi, prod

import numpy as np

BLOCK = 16


def draw_noise(seeds: Iterable[int], shape: Sequence[int]) -> np.ndarray:
    """N(0, 1) noise, (len(seeds), *shape) float32, each row from its own seed alone.

    Raises:
        ValueError: fewer than 16 numbers per row, which torch draws in another way.
    """
    return np.stack([normal(seed, prod(shape)).reshape(tuple(shape)) for seed in seeds])


def normal(seed: int, count: int) -> np.ndarray:
    """``torch.randn(count, generator=torch.Generator().manual_seed(seed))``, (count,) float32."""
    if count < BLOCK:
        raise ValueError(f"noise of {count} numbers: give {BLOCK} or more")
    # The generator takes 32 bits of the seed; a legacy RandomState is seeded as torch's is.
    bits = np.random.RandomState(seed % 2**32).randint(0, 2**32, count + BLOCK, dtype=np.uint32)
    uniform = (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    whole = count - count % BLOCK
    out = np.empty(count, np.float32)
    out[:whole] = _box_muller(uniform[:whole])
    if whole != count:
        out[-BLOCK:] = _box_muller(uniform[count:])
    return out


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Blocks of 8 + 8 uniform numbers to blocks of 8 + 8 normal ones, (16 n,) float32."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    log = np.log((1 - first).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * log)
    angle = (np.float32(2 * pi) * second).astype(np.float64)
    out = [radius * np.cos(angle).astype(np.float32), radius * np.sin(angle).astype(np.float32)]
    return np.stack(out, axis=1).ravel()
