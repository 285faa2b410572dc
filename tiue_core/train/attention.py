"""Attention for training on a CPU: two products and a softmax.

At the few places of a small latent the CPU's fused attention takes a quarter of an update with its
backward; written out it takes next to nothing (`benchmarks/trainer.py`). The numbers are the same.
"""

from __future__ import annotations

from torch import nn


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
