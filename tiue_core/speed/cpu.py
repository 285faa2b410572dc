"""What helps on a CPU: convolutions whose weights are prepared once, and pages that are kept."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..savings.layers import Conv, Transparent
from ..savings.measure import clock
from . import winograd

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's mallopt
_DTYPES = (torch.float32, torch.bfloat16)


class PackedConv(Transparent):
    """A convolution with its weight prepared beforehand, the way that was measured to be faster:
    in oneDNN's own blocked layout, or in Winograd's form.

    PyTorch has oneDNN reorder it again on each call, which takes a sixth of a full-size UNet's
    time. Stands in for ``forward``; where the weight changes it is prepared again, where gradients
    are wanted or tensors live elsewhere the layer runs as it is.
    """

    def __init__(self, conv: Any, winograd: bool = True) -> None:
        self.conv = conv
        self.winograd = winograd and tuple(conv.weight.shape[2:]) == (3, 3) and _plain_sides(conv)
        self._prepared: dict[str, Tensor] = {}
        self._ways: dict[tuple, str] = {}  # the faster one, by shape and dtype
        self._of: tuple = ()

    def __call__(self, x: Tensor) -> Tensor:
        conv, weight = self.conv, self.conv.weight
        ours = x.device.type == "cpu" and x.dtype in _DTYPES and not torch.is_grad_enabled()
        if not (self.enabled and ours and x.dtype == weight.dtype):
            return type(conv).forward(conv, x)
        version = 0 if weight.is_inference() else weight._version
        state = (weight.data_ptr(), version, weight.dtype)
        if state != self._of:
            self._prepared, self._of = {}, state
        key = (*x.shape, x.dtype)
        if key not in self._ways:
            self._ways[key] = self._faster(x)
        return self._run(self._ways[key], x)

    def _run(self, way: str, x: Tensor) -> Tensor:
        conv = self.conv
        sides = [list(conv.padding), list(conv.stride), list(conv.dilation)]
        if way not in self._prepared:
            weight = conv.weight.detach()
            if way == "winograd":
                self._prepared[way] = winograd.transformed(weight)
            else:
                reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
                blocked = weight.contiguous().to_mkldnn()
                self._prepared[way] = reorder(blocked, *sides, conv.groups, list(x.shape))
        if way == "winograd":
            return winograd.convolve(x, self._prepared[way], conv.bias)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._prepared[way], conv.bias, *sides, conv.groups, "none", [], ""
        )

    def _faster(self, x: Tensor) -> str:
        """The faster way for inputs like this one; what only the other needs is let go."""
        if not (self.winograd and winograd.fits(x)):
            return "blocked"
        seconds = {}
        for way in ("blocked", "winograd"):
            seconds[way] = clock(partial(self._run, way, x), x.device, repeats=2)
        best = min(seconds, key=lambda way: seconds[way])
        used = {best, *self._ways.values()}
        self._prepared = {way: made for way, made in self._prepared.items() if way in used}
        return best


def _plain_sides(conv: Any) -> bool:
    """Whether it has stride 1, padding 1, no dilation and one group."""
    sides = [*conv.stride, *conv.dilation, conv.groups]
    return tuple(conv.padding) == (1, 1) and set(sides) == {1}


def pack(model: nn.Module, winograd: bool = True) -> None:
    """Let every convolution of a model keep its weight prepared, from its first call on.

    That weight is then in memory twice, in Winograd's form 1.8 times more. Nothing happens where
    this PyTorch cannot pack.
    """
    if not can_pack():
        return
    for module in model.modules():
        plain = type(module) in (nn.Conv2d, Conv) and "forward" not in vars(module)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.forward = PackedConv(module, winograd)  # type: ignore[assignment]


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
    for dtype in _DTYPES:
        operands = x.to(dtype), weight.to(dtype)
        best[dtype] = clock(partial(F.conv2d, *operands), x.device)
    return best[torch.bfloat16] < best[torch.float32]
