"""Has a model changed since it was last looked at? Cheap enough to ask before every picture."""

from __future__ import annotations

from typing import Any

from torch import nn


class Watch:
    """``adapters()`` changes when a model's LoRAs come, go, or change their strength; ``state()``
    when tensors are exchanged, too."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._adapters: tuple | None = None
        self._tensors: list[nn.Parameter] = []
        self._layers: list[Any] = []

    def adapters(self) -> tuple:
        """The LoRAs, whether they are at work, and their strengths."""
        adapters = tuple(getattr(self.model, "peft_config", None) or ())
        if adapters != self._adapters:  # layers were added or removed
            self._adapters = adapters
            self._tensors = list(self.model.parameters())
            self._layers = [m for m in self.model.modules() if hasattr(m, "active_adapters")]
        layers = tuple(
            (*layer.active_adapters, layer.merged, layer.disable_adapters, *layer.scaling.items())
            for layer in self._layers
            if hasattr(layer, "scaling")
        )
        return (adapters, layers)

    def state(self) -> tuple:
        """The same, and which tensors these are. What was written into them it does not see:
        ``shared.layers.Bits`` does."""
        return (*self.adapters(), tuple((x.data_ptr(), x.dtype) for x in self._tensors))
