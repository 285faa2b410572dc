"""Has a model changed since it was last looked at? Cheap enough to ask before every picture."""

from __future__ import annotations

from typing import Any

from torch import nn


class Watch:
    """``state()`` changes when tensors of a model are exchanged or written to, or when its LoRAs
    come, go, or change their strength."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._adapters: tuple | None = None
        self._tensors: list[nn.Parameter] = []
        self._layers: list[Any] = []

    def state(self, written: bool = True) -> tuple:
        """``written``: whether writing into a tensor counts as a change."""
        adapters = tuple(getattr(self.model, "peft_config", None) or ())
        if adapters != self._adapters:  # layers were added or removed
            self._adapters = adapters
            self._tensors = list(self.model.parameters())
            self._layers = [m for m in self.model.modules() if hasattr(m, "active_adapters")]
        tensors = tuple(
            (x.data_ptr(), x._version if written and not x.is_inference() else 0, x.dtype)
            for x in self._tensors
        )
        layers = tuple(
            (*layer.active_adapters, layer.merged, layer.disable_adapters, *layer.scaling.items())
            for layer in self._layers
            if hasattr(layer, "scaling")
        )
        return (adapters, tensors, layers)
