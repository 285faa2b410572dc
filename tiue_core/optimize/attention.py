"""Self-attention in bfloat16 on a CPU, as plain matrix products, a piece of the queries at a time.

PyTorch's fused kernel multiplies in float32 there; oneDNN's products in bfloat16 are twice as fast
or more, which pays for writing the attention map to the cache and reading it again.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from ..shared.parts import understood
from .kernels import Packed, Way

QUERIES = 512  #: at a time, of every head: their part of the map, of 4096 keys, is 4 MB a head
LONG = 1024  #: tokens from which it is tried


class PiecewiseAttention(Packed):
    """Stands in for the forward of diffusers' ``Attention`` without context, mask or norms."""

    def weight(self) -> Tensor | None:
        attention = self.layer
        norms = (attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k)
        processor = attention.processor
        plain = type(processor) is AttnProcessor2_0 and understood(processor)
        plain = plain and norms == (None,) * 4
        if not plain or attention.residual_connection or attention.rescale_output_factor != 1:
            return None
        return next(attention.to_q.parameters())

    def ways(self, x: Tensor) -> list[Way]:
        long = x.dtype == torch.bfloat16 and x.ndim == 3 and x.shape[1] >= LONG
        return ["plain", "pieces"] if long else ["plain"]

    def signature(self, x: Tensor, weight: Tensor) -> tuple:
        return (*super().signature(x, weight), self.layer.heads)

    def run(self, way: Way, x: Tensor, prepared: Any) -> Tensor:
        attention = self.layer
        if way == "plain":
            return type(attention).forward(attention, x)
        heads, (B, N, _) = attention.heads, x.shape
        q, k, v = (
            to(x).view(B, N, heads, -1).transpose(1, 2)
            for to in (attention.to_q, attention.to_k, attention.to_v)
        )
        dropout: Any = attention.to_out[1]
        return dropout(attention.to_out[0](attend(q, k, v)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for (B, heads, N, D), as (B, N, heads * D)."""
    B, heads, N, D = q.shape
    out = q.new_empty((B, heads, N, D))
    q = q * D**-0.5
    for image in range(B):
        keys, values = k[image].transpose(1, 2).contiguous(), v[image].contiguous()
        for n in range(0, N, QUERIES):
            weights = torch.softmax(torch.bmm(q[image, :, n : n + QUERIES], keys), -1)
            out[image, :, n : n + QUERIES] = torch.bmm(weights, values)
    return out.transpose(1, 2).flatten(2)
