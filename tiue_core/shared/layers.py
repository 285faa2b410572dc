"""What a layer computes, read from outside: its effective weight, and a mark of its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

_PLAIN = (nn.Conv2d, nn.Linear)
_ADAPTED = (lora.Conv2d, lora.Linear)


class NotUnderstoodError(Exception):
    """A layer does something that cannot be looked through. The message says what."""


class Transparent:
    """Base of what may stand in for a module's forward because it computes the same."""

    enabled = True  # of all of them; see `as_written`


@contextmanager
def as_written() -> Iterator[None]:
    """Within, every stand-in steps aside and layers run as their authors wrote them."""
    Transparent.enabled = False
    try:
        yield
    finally:
        Transparent.enabled = True


class Conv(nn.Module):
    """A convolution with a weight of its own, derived from others'. In the layout of ``like``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, like: Tensor) -> None:
        super().__init__()
        last = like.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        self.weight = weight.detach().contiguous(memory_format=layout)
        self.bias = None if bias is None else bias.detach()
        self.padding = (padding, padding)
        self.stride = self.dilation = (1, 1)
        self.groups, self.padding_mode = 1, "zeros"

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


def untouched(module: nn.Module, kind: type | tuple[type, ...]) -> None:
    """Raise unless ``module`` is of just this class and nothing hangs on it or on its calls."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(module) not in kinds:
        raise NotUnderstoodError(f"a {type(module).__name__} in the place of {kinds[0].__name__}")
    if _replaced(module) or module._forward_hooks or module._forward_pre_hooks:
        raise NotUnderstoodError(f"a hook on {type(module).__name__}")


def weight_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a convolution or linear layer applies, active LoRAs included.

    Raises:
        NotUnderstoodError: the layer is no plain convolution, linear layer or LoRA around one.
    """
    untouched(layer, _PLAIN + _ADAPTED)
    if not isinstance(layer, _ADAPTED):
        return layer.weight, layer.bias
    base = layer.get_base_layer()
    untouched(base, _PLAIN)
    weight = base.weight
    for name in _active(layer):
        if layer.lora_variant or any(layer.lora_bias.values()):
            raise NotUnderstoodError("a LoRA variant")
        if drops(layer.lora_dropout[name]):
            raise NotUnderstoodError("dropout")
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias


def drops(layer: Any) -> bool:
    """Whether it is a dropout that is at work."""
    return layer.training and getattr(layer, "p", 0) > 0


def state_of(layer: Any) -> tuple:
    """Changes whenever ``weight_of`` or ``untouched`` may: tensors replaced or written to, LoRAs
    come, gone or scaled, hooks, another mode."""
    adapted = isinstance(layer, _ADAPTED)
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)
    state: list[Any] = [id(layer), hooks, _replaced(layer), layer.training]
    tensors = layer.parameters() if adapted else layer._parameters.values()
    for tensor in tensors:
        if tensor is None:
            continue
        version = 0 if tensor.is_inference() else tensor._version
        state.append((tensor.data_ptr(), version, tensor.dtype, tensor.stride()))
    if adapted:
        state += [tuple(_active(layer)), tuple(layer.merged_adapters)]
        state += layer.scaling.items()
    return tuple(state)


def probe(tensors: Iterable[Tensor]) -> tuple[float, ...]:
    """The middle element of every tensor: writes through ``tensor.data`` leave no other mark."""
    middles = [t.detach()[tuple(n // 2 for n in t.shape)].float() for t in tensors if t.numel()]
    return tuple(torch.stack(middles).tolist()) if middles else ()


def _replaced(module: nn.Module) -> bool:
    return not isinstance(vars(module).get("forward", Transparent()), Transparent)


def _active(layer: Any) -> list[str]:
    """LoRAs that the layer adds on each call (merged ones are in its weight already)."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]
