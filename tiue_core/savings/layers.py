"""What a layer computes, read from outside: its effective weight, and a mark of its state."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import layer as lora
from torch import Tensor, nn

_PLAIN = (nn.Conv2d, nn.Linear)
_ADAPTED = (lora.Conv2d, lora.Linear)


class NotUnderstoodError(Exception):
    """A layer does something that cannot be looked through. The message says what."""


def untouched(module: nn.Module, kind: type | tuple[type, ...]) -> None:
    """Raise unless ``module`` is of just this class and nothing hangs on it or on its calls."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(module) not in kinds:
        raise NotUnderstoodError(f"a {type(module).__name__} in the place of {kinds[0].__name__}")
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        raise NotUnderstoodError(f"a hook on {type(module).__name__}")
    if module.training:
        raise NotUnderstoodError("training mode")


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
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias


def state_of(layer: Any) -> tuple:
    """Changes whenever ``weight_of`` or ``untouched`` may: tensors replaced or written to, LoRAs
    come, gone or scaled, hooks, another mode."""
    adapted = isinstance(layer, _ADAPTED)
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)
    state: list[Any] = [id(layer), hooks, "forward" in vars(layer), layer.training]
    for tensor in layer.parameters(recurse=adapted):
        version = 0 if tensor.is_inference() else tensor._version
        state.append((tensor.data_ptr(), version, tensor.dtype, tensor.stride()))
    if adapted:
        state += [tuple(_active(layer)), tuple(layer.merged_adapters)]
        state += layer.scaling.items()
    return tuple(state)


def _active(layer: Any) -> list[str]:
    """LoRAs that the layer adds on each call (merged ones are in its weight already)."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]
