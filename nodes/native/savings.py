"""The savings of ``tiue_core.shared`` on ComfyUI's own ``UNetModel``: (a) and (e).

    a   conv(concat(h, skip)) = conv_h(h) + conv_skip(skip): a skip's half is the same for all
        timesteps. A normalization group that straddles the border stays with h.
    e   doubling, then a 3x3 convolution = a 2x2 convolution to four times the channels.

Nothing is kept: halves of weights are views, and the 2x2 weights are summed anew, so whatever
ComfyUI writes into a weight (LoRA, hooks, merges) is seen. Where something hangs on a layer that
cannot be looked through (weights streamed or quantized, patches on the block) it runs as it is.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    Upsample,
    forward_timestep_embed,
)
from torch import Tensor, nn

from .unet import ComfyUNet

PATCHES = ("output_block_patch", "forward_timestep_embed_patch")
_said: set[str] = set()


class NotUnderstoodError(Exception):
    """A layer does something that cannot be looked through. The message says what."""


class SharedComfyUNet(ComfyUNet):
    """A ``ComfyUNet`` whose decoders share what they have in common."""

    def _output_block(
        self,
        block: Any,
        h: Tensor,
        skip: Tensor,
        emb: Tensor,
        context: Tensor,
        options: dict[str, Any],
        size: Any,
    ) -> Tensor:
        first, *rest = block
        try:
            if any(options.get("patches", {}).get(name) for name in PATCHES):
                raise NotUnderstoodError("patches on the output blocks")
            x = _resnet(first, h, skip, emb)
        except NotUnderstoodError as error:
            _say(error)
            return super()._output_block(block, h, skip, emb, context, options, size)
        for layer in rest:
            try:
                x = _doubled(layer, x, size)
            except NotUnderstoodError as error:
                if isinstance(layer, Upsample):
                    _say(error)
                x = forward_timestep_embed([layer], x, emb, context, options, size)
        return x


def _resnet(block: Any, h: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
    """A ``ResBlock`` on concat(h, skip): h (n * B, C, H, W), skip (B, S, H, W)."""
    plain = type(block) is ResBlock and not (block.updown or block.use_scale_shift_norm)
    if not plain or block.skip_t_emb or block.exchange_temb_dims or _hooked(block):
        raise NotUnderstoodError(f"a {type(block).__name__} unlike Stable Diffusion's")
    norm, _, conv = block.in_layers
    shortcut = block.skip_connection
    gamma, beta = _weights(norm, nn.GroupNorm, h)
    (weight, bias), (w1, b1) = (_weights(layer, nn.Conv2d, h) for layer in (conv, shortcut))

    B, C = len(skip), h.shape[1]
    width = norm.num_channels // norm.num_groups
    groups = -(-C // width)
    own = groups * width  # channels that stay with h: its own, and those of the straddling group
    if groups >= norm.num_groups or weight.shape[2:] != (3, 3) or w1.shape[2:] != (1, 1):
        raise NotUnderstoodError("a ResBlock unlike Stable Diffusion's")

    def half(x: Tensor, part: slice, n: int, bias: Tensor | None) -> Tensor:
        x = F.silu(F.group_norm(x, n, gamma[part], beta[part], norm.eps))
        return F.conv2d(x, weight[:, part], bias, padding=1)

    edge = skip[:, : own - C]
    x = torch.cat([h, edge.repeat(len(h) // B, 1, 1, 1)], 1) if own > C else h
    y = half(x, slice(0, own), groups, None).unflatten(0, (-1, B))  # (n, B, C', H, W)
    y += half(skip[:, own - C :], slice(own, None), norm.num_groups - groups, bias)
    y = y.flatten(0, 1)
    y += block.emb_layers(emb).to(y.dtype)[:, :, None, None]
    y = block.out_layers(y)
    x = F.conv2d(h, w1[:, :C]).unflatten(0, (-1, B)) + F.conv2d(skip, w1[:, C:], b1)
    return x.flatten(0, 1) + y


def _doubled(layer: Any, x: Tensor, size: Any) -> Tensor:
    """An ``Upsample``, as one 2x2 convolution.

    Output row 2i + d sees the small rows i - 1, i, i for d = 0 and i, i, i + 1 for d = 1: two taps,
    of which one has the sum of two weights. The same for columns.
    """
    if type(layer) is not Upsample or layer.dims != 2 or not layer.use_conv or _hooked(layer):
        raise NotUnderstoodError(f"a {type(layer).__name__}")
    (N, _, H, W) = x.shape
    if size is not None and tuple(size[2:]) != (2 * H, 2 * W):
        raise NotUnderstoodError("a size that halving had rounded")
    weight, bias = _weights(layer.conv, nn.Conv2d, x)
    a, b, c = weight.float().unbind(2)
    rows = ((a, b + c), (a + b, c))  # by parity: the upper and the lower tap, (C', C, 3)
    out = x.new_empty((N, len(weight), 2 * H, 2 * W))
    taps = []
    for upper, lower in rows:
        for left, right in (((0,), (1, 2)), ((0, 1), (2,))):
            taps.append([[t[..., list(k)].sum(-1) for k in (left, right)] for t in (upper, lower)])
    kernel = torch.stack([torch.stack([torch.stack(row, -1) for row in tap], -2) for tap in taps])
    y = F.conv2d(
        x,
        kernel.flatten(0, 1).to(x.dtype),  # (4 C', C, 2, 2)
        None if bias is None else bias.repeat(4),
        padding=1,
    )
    for parity, part in enumerate(y.chunk(4, 1)):
        d, e = divmod(parity, 2)
        out[:, :, d::2, e::2] = part[:, :, d : d + H, e : e + W]
    return out


def _weights(layer: Any, kind: type, like: Tensor) -> tuple[Tensor, Any]:
    """Weight and bias of one of ComfyUI's own layers, in the dtype that it would compute in."""
    ours = isinstance(layer, kind)
    if not ours or type(layer).__module__ != comfy.ops.__name__:
        raise NotUnderstoodError(f"a {type(layer).__module__}.{type(layer).__name__}")
    if layer.weight_function or layer.bias_function or _hooked(layer):
        raise NotUnderstoodError("a weight that is patched when it is used")
    weight, bias = layer.weight, layer.bias
    if type(weight.data) is not Tensor or weight.device != like.device:
        raise NotUnderstoodError("a weight that is streamed or quantized")
    return weight.to(like.dtype), None if bias is None else bias.to(like.dtype)


def _hooked(layer: Any) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _say(error: NotUnderstoodError) -> None:
    if str(error) not in _said:
        _said.add(str(error))
        logging.info("TiUE: %s: these decoders run without savings", error)
