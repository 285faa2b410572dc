"""What helps on a CPU: convolution weights packed once, and memory pages that are kept."""

from __future__ import annotations

import ctypes
import platform
import time
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..savings.layers import Conv, Transparent

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt
_DTYPES = (torch.float32, torch.bfloat16)


class PackedConv(Transparent):
    """A convolution whose weight oneDNN has brought into its own blocked layout beforehand.

    PyTorch has it done again on each call, which takes a sixth of a full-size UNet's time. Stands
    in for ``forward``; where the weight changes it is packed again, where gradients are wanted or
    tensors live elsewhere the layer runs as it is.
    """

    def __init__(self, conv: Any) -> None:
        self.conv = conv
        self._packed: Tensor | None = None
        self._of: tuple = ()

    def __call__(self, x: Tensor) -> Tensor:
        conv, weight = self.conv, self.conv.weight
        ours = x.device.type == "cpu" and x.dtype in _DTYPES and not torch.is_grad_enabled()
        if not (self.enabled and ours):
            return type(conv).forward(conv, x)
        version = 0 if weight.is_inference() else weight._version
        state = (weight.data_ptr(), version, weight.dtype)
        sides = [list(conv.padding), list(conv.stride), list(conv.dilation)]
        if self._packed is None or state != self._of:
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._packed = pack(
                weight.detach().contiguous().to_mkldnn(), *sides, conv.groups, list(x.shape)
            )
            self._of = state
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, conv.bias, *sides, conv.groups, "none", [], ""
        )


def pack(model: nn.Module) -> None:
    """Let every convolution of a model keep its weight packed, from its first call on.

    That weight is then in memory twice. Nothing happens where this PyTorch cannot pack.
    """
    if not can_pack():
        return
    for module in model.modules():
        plain = type(module) in (nn.Conv2d, Conv) and "forward" not in vars(module)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.forward = PackedConv(module)  # type: ignore[assignment]


def unpack(model: nn.Module) -> None:
    """Undo ``pack``."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), PackedConv):
            del module.forward


def can_pack() -> bool:
    """Whether this PyTorch has oneDNN, and still takes packed weights the way we give them."""
    if not torch.backends.mkldnn.is_available():
        return False
    conv = Conv(torch.eye(16)[:, :, None, None], None, 0, torch.ones(1, 1, 1, 1))
    x = torch.arange(16.0).view(1, 16, 1, 1)
    try:
        with torch.no_grad():
            return torch.equal(PackedConv(conv)(x), F.conv2d(x, conv.weight))
    except (AttributeError, RuntimeError, TypeError):
        return False


def keep_pages(keep: bool = True) -> bool:
    """Have the C library keep freed memory, instead of giving it back and fetching it zeroed again.

    A full-size UNet's features are tens of megabytes each; fetching them anew costs more than
    adding two of them. For the whole process; only glibc can, and only in the main thread's arena.
    Says whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0 if keep else 65536), (_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26))
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
    for dtype in _DTYPES:
        operands = x.to(dtype), weight.to(dtype)
        with torch.no_grad():
            best[dtype] = min(_seconds(*operands) for _ in range(4))
    return best[torch.bfloat16] < best[torch.float32]


def _seconds(x: Tensor, weight: Tensor) -> float:
    began = time.perf_counter()
    F.conv2d(x, weight, padding=1)
    return time.perf_counter() - began
