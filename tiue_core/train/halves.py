"""Networks that run in bfloat16 while their weights are kept and moved in float32.

Autocast turns every weight into bfloat16 again at every use and leaves the normalisations between
two precisions; a copy made once an update is the same arithmetic for less. Its attention is written
out (products and a softmax): at the few places of a small latent the CPU's fused backward costs
more than all the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Halves:
    """``halves["unet"]`` is what runs; ``refresh`` before it, ``gather`` after its backward."""

    def __init__(self, modules: Mapping[str, nn.Module], dtype: torch.dtype = torch.bfloat16):
        self._kept = dict(modules)
        self._run = {
            name: written_out(nn.Module.to(copy.deepcopy(module), dtype))  # not diffusers' own
            for name, module in modules.items()
        }
        pairs = [
            (kept, run)
            for name in modules
            for kept, run in zip(
                self._kept[name].parameters(), self._run[name].parameters(), strict=True
            )
            if kept.requires_grad
        ]
        self._masters: list[torch.Tensor] = [kept for kept, _ in pairs]
        self._copies: list[torch.Tensor] = [run for _, run in pairs]

    def __getitem__(self, name: str) -> Any:
        return self._run[name]

    @torch.no_grad()
    def refresh(self) -> None:
        """The copies take what the optimizer wrote."""
        torch._foreach_copy_(self._copies, self._masters)

    @torch.no_grad()
    def gather(self) -> None:
        """The copies' gradients, in float32, become the kept weights'."""
        for master, run in zip(self._masters, self._copies, strict=True):
            if run.grad is not None:
                found = run.grad.float()
                master.grad = found if master.grad is None else master.grad.add_(found)
            run.grad = None


def written_out(module: nn.Module) -> nn.Module:
    """``module`` with attention as products and a softmax, where it is diffusers' or CLIP's."""
    from diffusers.models.attention_processor import Attention, AttnProcessor
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
    if isinstance(module, PreTrainedModel):
        module.set_attn_implementation("eager")
    return module
