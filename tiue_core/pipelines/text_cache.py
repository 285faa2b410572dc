"""Prompt embeddings that were computed before: one prompt, many seeds; one list, many sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..shared.layers import Bits, is_patched
from ..shared.snapshot import Snapshot

LIMIT = 256  # prompts; 80 MB for Stable Diffusion 2.1 in float32
Key = TypeVar("Key", bound=Hashable)


class Embeddings:
    """Remembers what text encoders answered, for as long as they stay as they are.

    They are as they were if their modules, what is set on these, and all bits of their weights are;
    with anything hooked into them, nobody can tell, and nothing is remembered.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._known: OrderedDict[Any, Tensor] = OrderedDict()
        self._encoders: list[nn.Module] = []
        self._seen: Snapshot | None = None  # of these
        self._patched = False
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
        if self._seen is None or encoders != self._encoders or not self._seen.same():
            self._known.clear()
            self._encoders, self._seen = encoders, Snapshot(*encoders)
            self._patched = any(is_patched(m) for encoder in encoders for m in encoder.modules())
        if torch.is_grad_enabled() or self._patched:
            return encode(list(keys))
        tensors = self._seen.tensors()
        state = (*(tensor.dtype for tensor in tensors), self._bits.mark(tensors), *tied)
        if state != self._state:
            self._known.clear()
            self._state = state
        found = {key: self._known.pop(key) for key in dict.fromkeys(keys) if key in self._known}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            found |= zip(missing, encode(missing), strict=True)
        self._known |= found  # the latest last
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return torch.stack([found[key] for key in keys])
