"""Saving (e) for a model that is not split: every upsampler of it, such as an autoencoder's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from .exact import NotUnderstoodError
from .layers import Transparent, state_of
from .parts import Upsampler
from .snapshot import Snapshot


class Doubling(Transparent):
    """Stands in for the forward of an ``Upsample2D``: the same, as one 2x2 convolution."""

    def __init__(self, upsample: Any) -> None:
        self.upsample = upsample
        self._part: Upsampler | None = None
        self._of: tuple = ()
        self._seen: Snapshot | None = None
        self.part()

    def part(self) -> Upsampler:
        """Made anew where the convolution's weight has changed, or what is set on either."""
        state = state_of([self.upsample.conv])
        if self._part is None or state != self._of or not (self._seen and self._seen.same()):
            self._part, self._of = Upsampler(self.upsample), state
            self._seen = Snapshot(self.upsample)
        return self._part

    def __call__(self, h: Tensor, output_size: Any = None) -> Tensor:
        size = None if output_size is None else tuple(output_size)
        doubled = (2 * h.shape[2], 2 * h.shape[3])
        if self.enabled and not torch.is_grad_enabled() and size in (None, doubled):
            with suppress(NotUnderstoodError):  # it is not what it was
                return self.part()(h)
        return type(self.upsample).forward(self.upsample, h, output_size)


def double_cheaply(model: nn.Module) -> None:
    """Let every upsampler of a model that can be doubled so be; ``double_plainly`` undoes it."""
    for module in model.modules():
        if type(module) is Upsample2D and "forward" not in vars(module):
            try:
                module.forward = Doubling(module)  # type: ignore[assignment]
            except NotUnderstoodError:
                continue


def double_plainly(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Doubling):
            del module.forward
