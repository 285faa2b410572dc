"""What helps on a CPU: pages that are kept."""

from __future__ import annotations

import ctypes
import platform

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
