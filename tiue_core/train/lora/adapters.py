"""Adapters on a UNet, and a student that lends itself to a teacher's."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

from ...errors import TiueError
from ..recipe import LoraRecipe


def lora_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """What learns in a UNet with adapters, by name; the same names in teacher and student."""
    return {name: p for name, p in unet.named_parameters() if ".lora_" in name}


def adapt(unet: Any, recipe: LoraRecipe) -> list[nn.Parameter]:
    """Give a UNet fresh adapters, float32 whatever its weights are; returns what learns.

    Raises:
        TiueError: a target names no layer.
    """
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=recipe.targets)
    try:
        unet.add_adapter(config)
    except ValueError:
        wanted = ", ".join(recipe.targets)
        raise TiueError(f"no layer is called {wanted}: give names like to_q or conv1") from None
    learned = list(lora_parameters(unet).values())
    for parameter in learned:
        parameter.data = parameter.data.float()
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # where diffusers looks whether to; nothing in these UNets drops out
    return learned


class borrowed:
    """A student that carries a teacher's LoRA in its weights, for as long as the block lasts."""

    def __init__(self, student: Any, teacher: Any):
        self.deltas = deltas(teacher)
        self.layers = dict(student.named_modules())

    def __enter__(self) -> None:
        self.kept = {name: self.layers[name].weight.data for name in self.deltas}
        for name, delta in self.deltas.items():
            weight = self.kept[name]
            self.layers[name].weight.data = (weight.float() + delta).to(weight.dtype)

    def __exit__(self, *_: object) -> None:
        for name, weight in self.kept.items():
            self.layers[name].weight.data = weight


def deltas(unet: Any) -> dict[str, Tensor]:
    """What each adapter adds to its layer's weight."""
    return {
        name: module.get_delta_weight(module.active_adapters[0]).detach()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight") and module.active_adapters
    }
