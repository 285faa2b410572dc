"""What helps on a CPU: pages that are kept, and knowing which dtype is fast."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache, partial

import torch
import torch.nn.functional as F

from ..shared.measure import clock

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's mallopt


def keep_pages(keep: bool = True) -> bool:
    """Have the C library keep freed memory, instead of giving it back and fetching it zeroed again.

    A full-size UNet's features are tens of megabytes each; fetching them anew costs more than
    adding two of them. For the whole process; only glibc can, and only in the main thread's arena.
    Says whether it was done.
    """
    return _mallopt(
        (_MMAP_MAX, 0 if keep else 65536), (_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26)
    )


def give_back_pages() -> bool:
    """Have the C library return large freed blocks to the system. Says whether it was done.

    By itself it raises the size from which it does up to 32 MB, and the holes that leaves made a
    third of what a training update at Stable Diffusion's shape held.
    """
    return _mallopt((_MMAP_THRESHOLD, 1 << 20))


def _mallopt(*settings: tuple[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in settings)


@lru_cache(maxsize=1)
def has_fast_bfloat16() -> bool:
    """Whether the processor convolves in bfloat16 faster than in float32, measured once.

    The list of its instructions does not tell: with avx512_bf16 alone one processor was measured
    at two thirds of float32's rate, another at twice.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.randn(1, 320, 32, 32), torch.randn(320, 320, 3, 3)
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        operands = x.to(dtype), weight.to(dtype)
        best[dtype] = clock(partial(F.conv2d, *operands), x.device)
    return best[torch.bfloat16] < best[torch.float32]
