"""Prompt embeddings that were computed before: one prompt, many seeds; one list, many sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..shared.layers import Bits, is_patched

LIMIT = 256  # prompts; 80 MB for Stable Diffusion 2.1 in float32
Key = TypeVar("Key", bound=Hashable)


class Embeddings:
    """Remembers what text encoders answered, for as long as they stay as they are.

    They are as they were if their modules, adapters, configs and all bits of their weights are;
    with anything hooked into them, nobody can tell, and nothing is remembered.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._known: OrderedDict[Any, Tensor] = OrderedDict()
        self._modules: list[nn.Module] = []  # held, so that their identity stays their own
        self._state: tuple = ()
        self._bits = Bits()

    def __call__(
        self,
        keys: Sequence[Key],
        encode: Callable[[list[Key]], Tensor],
        encoders: nn.Module | Sequence[nn.Module],
        *tied: Any,
    ) -> Tensor:
        """``encode`` of all keys, (len(keys), N, D), asked only for those not known.

        Args:
            keys: all that the encoders are given of each prompt: its tokens.
            encoders: the text encoders; ``tied`` is what else the answer depends on.
        """
        encoders = [encoders] if isinstance(encoders, nn.Module) else list(encoders)
        modules = [module for encoder in encoders for module in encoder.modules()]
        if torch.is_grad_enabled() or any(map(is_patched, modules)):
            return encode(list(keys))
        tensors = [t for one in encoders for t in (*one.parameters(), *one.buffers())]
        configs = {id(c): c for m in modules if (c := getattr(m, "config", None)) is not None}
        said = (repr(vars(config)) for config in configs.values())
        state = (*map(_settings, modules), *said, self._bits.mark(tensors), *tied)
        same = len(modules) == len(self._modules) and all(map(_is, modules, self._modules))
        if not same or state != self._state:
            self._known.clear()
            self._modules, self._state = modules, state
        found = {key: self._known.pop(key) for key in dict.fromkeys(keys) if key in self._known}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            found |= zip(missing, encode(missing), strict=True)
        self._known |= found  # the latest last
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def _settings(module: Any) -> tuple:
    """What a module's answer depends on beside its weights and config: LoRAs at work, its mode."""
    dtypes = tuple(t.dtype for t in module._parameters.values() if t is not None)
    if not hasattr(module, "scaling") or not hasattr(module, "active_adapters"):
        return (module.training, dtypes)
    active = (*module.active_adapters, *module.merged_adapters, module.disable_adapters)
    return (module.training, dtypes, active, *module.scaling.items())


def _is(one: object, other: object) -> bool:
    return one is other
