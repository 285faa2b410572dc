"""The base of a CPU's stand-ins: a weight prepared once, and of several ways the fastest.

Where the weight changes it is prepared again; where gradients are wanted, tensors live elsewhere,
or the layer is not what it was, it runs as it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..shared.layers import Transparent, fingerprint, methods_of, padding_of, replaced
from ..shared.measure import clock
from .winograd import Form

DTYPES = (torch.float32, torch.bfloat16)
WORTH = 1.1  #: times that Winograd's form has to be faster, to be worth its kernels' memory
Way = str | Form  #: by name, or Winograd's form


class Packed(Transparent):
    """Stands in for the forward of ``layer``, which applies ``weight``."""

    found: dict[tuple, Way] = {}  # noqa: RUF012  the fastest way, by `signature`: layers repeat

    def __init__(self, layer: Any) -> None:
        self.layer, self._kind = layer, [type(layer), *methods_of(type(layer))]
        self._prepared: dict[Way, Any] = {}  # what each way needs
        self._of: tuple = ()

    def __getstate__(self) -> dict[str, Any]:
        """For a copy: what is prepared cannot be copied, and is prepared again."""
        return {**vars(self), "_prepared": {}, "_of": ()}

    def weight(self) -> Tensor | None:
        """Of the layer; none if it is not what it was when this was made."""
        return self.layer.weight

    def settings(self) -> tuple:
        """What of the layer, beside its weight, decides what is prepared."""
        return ()

    def ways(self, x: Tensor) -> list[Way]:
        """Names of what can be tried on an input."""
        raise NotImplementedError

    def signature(self, x: Tensor, weight: Tensor) -> tuple:
        """What the time it takes depends on."""
        shapes = x.shape, x.stride(), x.dtype, weight.shape
        return (type(self).__name__, torch.get_num_threads(), *shapes, *self.settings())

    def prepare(self, way: Way, x: Tensor) -> Any:
        """What a way needs beside the input."""

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        """The layer's output."""
        raise NotImplementedError

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        named = {name: value for name, value in named.items() if value is not None}
        kind = type(self.layer)
        same = [kind, *methods_of(kind)] == self._kind and padding_of(self.layer) == "zeros"
        same = same and not replaced(self.layer)
        known = same and x.device.type == "cpu" and x.dtype in DTYPES
        weight = self.weight() if known else None
        fit = self.enabled and not (rest or named or torch.is_grad_enabled())
        if weight is None or weight.dtype != x.dtype or not fit:
            return kind.forward(self.layer, x, *rest, **named)
        state = (weight.data_ptr(), weight.dtype, fingerprint([weight]), *self.settings())
        if state != self._of:
            self._prepared, self._of = {}, state
        key = self.signature(x, weight)
        if key not in self.found:
            self.found[key] = self._fastest(x)
        return self._run(self.found[key], x)

    def _run(self, way: Way, x: Tensor) -> Tensor:
        if way not in self._prepared:
            self._prepared[way] = self.prepare(way, x)
        return self.run(way, x, self._prepared[way])

    def _fastest(self, x: Tensor) -> Way:
        """Of the ways for inputs like this one; what only the others need is let go."""
        ways, kept = self.ways(x), dict(self._prepared)
        if len(ways) == 1:
            return ways[0]
        seconds = {way: clock(partial(self._run, way, x), x.device, repeats=2) for way in ways}
        best = min(ways, key=lambda way: seconds[way] * (WORTH if isinstance(way, Form) else 1))
        self._prepared = kept | {best: self._prepared[best]}
        return best
