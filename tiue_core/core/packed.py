"""SDXL's prompt as one tensor: its UNet also wants the prompt pooled, and the size.

The rest of the library knows a prompt as one tensor (B, N, D). SDXL's travels as one too: the
pooled text (B, P) in rows of its own behind the prompt's N, and comes apart where the UNet is
called, where the size is known as well:

    packed (B, N + ceil(P / D), D)  ->  prompt_embeds (B, N, D), text_embeds (B, P)
    latents (B, C, h, w)            ->  time_ids (B, 6): original size, corner, size, in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .unet import Features, SplitUNet

ADDED = "text_time"  #: what diffusers calls a UNet with these two conditions
IDS = 6


def pooled_width(unet: Any) -> int:
    """P of a UNet; 0 if it wants no pooled text."""
    config = unet.config
    if config.addition_embed_type != ADDED:
        return 0
    return config.projection_class_embeddings_input_dim - IDS * config.addition_time_embed_dim


def extra_rows(unet: Any) -> int:
    """Rows that the pooled text takes behind a prompt."""
    return -(-pooled_width(unet) // unet.config.cross_attention_dim)


def pack(prompt_embeds: Tensor, pooled: Tensor) -> Tensor:
    """(B, N, D) and (B, P) -> (B, N + ceil(P / D), D), filled up with zeros."""
    width = prompt_embeds.shape[-1]
    rows = F.pad(pooled, (0, -pooled.shape[-1] % width)).unflatten(-1, (-1, width))
    return torch.cat([prompt_embeds, rows.to(prompt_embeds.dtype)], dim=1)


def unpack(
    unet: Any, packed: Tensor, size: Sequence[int], factor: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Prompt embeddings and ``added_cond_kwargs``; ``size`` (h, w) of the latents."""
    rows = extra_rows(unet)
    pooled = packed[:, -rows:].flatten(1)[:, : pooled_width(unet)]
    one = packed.new_ones(())  # by multiplication, so that a traced size stays free
    h, w = (one * (side * factor) for side in size)
    ids = torch.stack([h, w, 0 * one, 0 * one, h, w])
    added = {"text_embeds": pooled, "time_ids": ids.expand(len(packed), -1)}
    return packed[:, :-rows], added


class PackedUNet(SplitUNet):
    """SDXL's UNet as an encoder and a decoder that take a packed prompt.

    Over another kind of ``SplitUNet`` it takes a packed prompt to that: ``class Both(PackedUNet,
    Other)``.
    """

    def __init__(self, unet: Any, factor: int, **options: Any) -> None:
        super().__init__(unet, **options)
        self.factor = factor

    def encode(
        self, noise: Tensor, timestep: Any, prompt_embeds: Tensor, **conditions: Any
    ) -> Features:
        embeds, added = unpack(self.unet, prompt_embeds, noise.shape[-2:], self.factor)
        return super().encode(noise, timestep, embeds, added_cond_kwargs=added, **conditions)

    def decode(
        self, features: Features, timesteps: Any, prompt_embeds: Tensor, **conditions: Any
    ) -> Tensor:
        embeds, added = unpack(self.unet, prompt_embeds, features.size, self.factor)
        return super().decode(features, timesteps, embeds, added_cond_kwargs=added, **conditions)


def split(unet: Any, factor: int) -> SplitUNet:
    """Either kind of UNet in its two halves; ``factor`` is pixels a latent."""
    return PackedUNet(unet, factor) if pooled_width(unet) else SplitUNet(unet)


def take_packed(unet: Any, factor: int) -> None:
    """Have calls of SDXL's whole UNet take a packed prompt too; others stay as they are."""
    if not pooled_width(unet):
        return

    def apart(module: Any, arguments: tuple, given: dict[str, Any]) -> tuple[tuple, dict]:
        sample, timestep, packed = arguments
        embeds, added = unpack(module, packed, sample.shape[-2:], factor)
        return (sample, timestep, embeds), {**given, "added_cond_kwargs": added}

    unet.register_forward_pre_hook(apart, with_kwargs=True)


def encode_ids(first: Any, second: Any, ids: Tensor, second_ids: Tensor, blank: Tensor) -> Tensor:
    """Token ids (B, N) of both tokenizers to packed prompts: the layers before the last, side by
    side, and the second encoder's projection; zeros where ``blank`` (B,), as SDXL has learned."""
    one = first(ids, output_hidden_states=True)
    two = second(second_ids, output_hidden_states=True)
    return joined(one.hidden_states[-2], two.hidden_states[-2], two.text_embeds, blank)


def joined(one: Tensor, two: Tensor, pooled: Tensor, blank: Tensor) -> Tensor:
    """Both encoders' states (B, N, D1) and (B, N, D2), and the pooled text (B, P), as packed."""
    packed = pack(torch.cat([one, two], dim=-1), pooled)
    return packed.masked_fill(blank.to(packed.device)[:, None, None], 0)
