"""Has a model changed since it was last looked at? Cheap enough to ask before every picture."""

from __future__ import annotations

from typing import Any

from torch import nn


class Watch:
    """``adapters()`` changes when a model's LoRAs come, go, or change their strength."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._adapters: tuple | None = None
        self._layers: list[Any] = []

    def adapters(self) -> tuple:
        """The LoRAs, whether they are at work, and their strengths."""
        adapters = tuple(getattr(self.model, "peft_config", None) or ())
        if adapters != self._adapters:  # layers were added or removed
            self._adapters = adapters
            self._layers = [m for m in self.model.modules() if hasattr(m, "active_adapters")]
        layers = tuple(
            (*layer.active_adapters, layer.merged, layer.disable_adapters, *layer.scaling.items())
            for layer in self._layers
            if hasattr(layer, "scaling")
        )
        return (adapters, layers)


class TensorWatch(Watch):
    """``state()`` changes when tensors are exchanged, too. What was written into them it does not
    see: ``shared.layers.Bits`` does."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._tensors: tuple[Any, list[nn.Parameter]] = (None, [])

    def state(self) -> tuple:
        """``adapters()``, and which tensors these are."""
        adapters, layers = self.adapters()
        if adapters != self._tensors[0]:
            self._tensors = adapters, list(self.model.parameters())
        places = tuple((x.data_ptr(), x.dtype) for x in self._tensors[1])
        return (adapters, layers, places)
