"""Stand-ins for a CPU's layers: weights prepared once, and of several ways the fastest.

PyTorch has oneDNN reorder a weight on each call, which takes a sixth of a full-size UNet's time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..shared.layers import Conv, is_patched, known, weight_of
from ..shared.parts import Upsampler
from . import winograd
from .attention import PiecewiseAttention
from .kernels import Packed, Way
from .winograd import Form


class PackedConv(Packed):
    """A convolution in oneDNN's own blocked layout, or in Winograd's form."""

    def __init__(self, layer: Any, winograd: bool = True) -> None:
        super().__init__(layer)
        self._wanted = winograd

    @property
    def winograd(self) -> bool:
        """Whether the form is for the layer as it is set now."""
        return self._wanted and _plain(self.layer)

    def weight(self) -> Tensor | None:
        return None if isinstance(self.layer.padding, str) else self.layer.weight

    def settings(self) -> tuple:
        return (*map(tuple, self._sides()), self.layer.groups, self.winograd)

    def ways(self, x: Tensor) -> list[Way]:
        form = winograd.fitting(x) if self.winograd else None
        return ["blocked", *([form] if form else [])]

    def prepare(self, way: Way, x: Tensor) -> Any:
        weight = self.layer.weight.detach()
        if isinstance(way, Form):
            return winograd.transformed(weight, way)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        blocked = weight.contiguous().to_mkldnn()
        return reorder(blocked, *self._sides(), self.layer.groups, list(x.shape))

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        if isinstance(way, Form):
            return winograd.convolve(x, prepared, self.layer.bias, way)
        sides, groups = self._sides(), self.layer.groups
        return torch.ops.mkldnn._convolution_pointwise(
            x, prepared, self.layer.bias, *sides, groups, "none", [], ""
        )

    def _sides(self) -> list[list[int]]:
        return [list(self.layer.padding), list(self.layer.stride), list(self.layer.dilation)]


class PackedUpsampler(Packed):
    """A doubling and its convolution as one 2x2 convolution, or in Winograd's form."""

    def __call__(self, x: Tensor, size: Any = None, **named: Any) -> Tensor:
        doubled = (2 * x.shape[2], 2 * x.shape[3])
        if size is not None and tuple(size) == doubled:
            size = None
        return super().__call__(x, *([] if size is None else [size]), **named)

    def weight(self) -> Tensor | None:
        return self.layer.conv.weight

    def ways(self, x: Tensor) -> list[Way]:
        form = winograd.fitting(x, doubled=True)
        return ["plain", *([form] if form else [])]

    def prepare(self, way: Way, x: Tensor) -> Any:
        if not isinstance(way, Form):
            return None
        weight, bias = weight_of(self.layer.upsample.conv)
        return winograd.transformed(weight, way), bias

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        if not isinstance(way, Form):
            return type(self.layer).forward(self.layer, x)
        kernels, bias = prepared
        return winograd.convolve(x, kernels, bias, way)


class PackedLinear(Packed):
    """A linear layer in oneDNN's own blocked layout, or as it is."""

    def ways(self, x: Tensor) -> list[Way]:
        return ["plain", "blocked"]

    def prepare(self, way: Way, x: Tensor) -> Any:
        return None if way == "plain" else _blocked(self.layer.weight, x)

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        if way == "plain":
            return F.linear(x, self.layer.weight, self.layer.bias)
        return _linear(x, prepared, self.layer.bias, "none", [], "")


class PackedGEGLU(Packed):
    """diffusers' GEGLU, h * GELU(g) with (h, g) = W x + b, with both operations done by the
    products that make g and h as they write them."""

    def weight(self) -> Tensor | None:
        proj = self.layer.proj  # a LoRA around it is no nn.Linear
        return proj.weight if type(proj) is nn.Linear and _own(proj) else None

    def ways(self, x: Tensor) -> list[Way]:
        return ["plain", "fused"]

    def prepare(self, way: Way, x: Tensor) -> Any:
        halves = () if way == "plain" else self.layer.proj.weight.chunk(2)
        return [_blocked(half, x) for half in halves]

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        weight, bias = self.layer.proj.weight, self.layer.proj.bias
        if way == "plain":
            h, gate = F.linear(x, weight, bias).chunk(2, -1)
            return h * F.gelu(gate)
        h_bias, g_bias = (None, None) if bias is None else bias.chunk(2)
        gate = _linear(x, prepared[1], g_bias, "gelu", [], "none")
        return _linear.binary(x, gate, prepared[0], h_bias, "mul")


_linear: Any = torch.ops.mkldnn._linear_pointwise


def _blocked(weight: Tensor, x: Tensor) -> Tensor:
    """In the layout that suits as many rows as ``x`` has."""
    rows = x.numel() // x.shape[-1]
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)


def _plain(conv: Any) -> bool:
    """Whether it is 3x3 with stride 1, padding 1, no dilation and one group."""
    three = tuple(conv.weight.shape[2:]) == (3, 3)
    sides = [*conv.stride, *conv.dilation, conv.groups]
    return three and tuple(conv.padding) == (1, 1) and set(sides) == {1}


def pack(model: nn.Module, winograd: bool = True) -> None:
    """Let every layer of a model that has a stand-in run the way that is fastest, from its first
    call with inputs of a shape on.

    A prepared weight is in memory twice; a convolution's in Winograd's form 4 times more in
    float32, 1.8 times in bfloat16. Nothing happens where this PyTorch cannot pack.
    """
    if not can_pack():
        return
    for module in model.modules():
        if "forward" not in vars(module):
            stand_in = _stand_in(module, winograd)
            if stand_in is not None:
                module.forward = stand_in  # type: ignore[assignment]


def _own(module: nn.Module) -> bool:
    """Whether it does what its library wrote."""
    return known(type(module)) and not is_patched(module)


def _stand_in(module: Any, winograd: bool) -> Packed | None:
    if not known(type(module)):
        return None
    if type(module) in (nn.Conv2d, Conv):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return PackedConv(module, winograd) if plain else None
    others = {
        nn.Linear: PackedLinear,
        GEGLU: PackedGEGLU,
        Attention: PiecewiseAttention,
        Upsampler: PackedUpsampler,
    }
    kind: type[Packed] | None = others.get(type(module))
    return kind(module) if kind is not None else None


def unpack(model: nn.Module) -> None:
    """Undo ``pack``."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Packed):
            del module.forward


@lru_cache(maxsize=1)
def can_pack() -> bool:
    """Whether this PyTorch has oneDNN, and still takes packed weights the way we give them."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.arange(16.0).view(1, 16, 1, 1)
    conv = Conv(torch.eye(16)[:, :, None, None], None, 0, x)
    try:
        with torch.no_grad():
            packed, rows = PackedLinear(conv), x.view(1, 16)
            blocked = _blocked(torch.eye(16), rows)
            both = PackedConv(conv)(x), packed.run("blocked", rows, blocked)
            return all(torch.equal(one.flatten(), x.flatten()) for one in both)
    except (AttributeError, RuntimeError, TypeError):
        return False
