"""A UNet that is another one and a few small matrices: half a megabyte where it would be ten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import TiueError

LOW_RANK = "low-rank.safetensors"  #: such matrices, beside the student that they make


def add_low_rank(unet: Any, tensors: Mapping[str, Any]) -> None:
    """W + B A in every layer that ``tensors`` name, ``LAYER.lora_A.weight`` (r, in, ...) and
    ``LAYER.lora_B.weight`` (out, r, ...): a LoRA whose alpha is its rank.

    Raises:
        TiueError: they are for another UNet.
    """
    layers = dict(unet.named_modules())
    for layer in dict.fromkeys(name.partition(".lora_")[0] for name in tensors):
        names = [f"{layer}.lora_{side}.weight" for side in "BA"]
        weight: Any = getattr(layers.get(layer), "weight", None)
        try:
            up, down = (tensors[name].float().flatten(1) for name in names)
            added = (up @ down).view_as(weight)
        except (KeyError, RuntimeError, AttributeError, TypeError):
            raise TiueError(
                f"a low-rank difference for {layer} does not fit this UNet: give the one that "
                "was made from it"
            ) from None
        weight.data += added.to(weight)
