"""The savings of ``tiue_core.shared.exact`` on ComfyUI's own ``UNetModel``: (a) and (e).

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

from ...tiue_core.shared.exact import NotUnderstoodError, doubling_kernel, interleaved, split_groups
from .unet import ComfyUNet

PATCHES = ("output_block_patch", "forward_timestep_embed_patch")
_said: set[str] = set()


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
    groups, own = split_groups(norm.num_channels, norm.num_groups, C)
    if weight.shape[2:] != (3, 3) or w1.shape[2:] != (1, 1):
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
    """An ``Upsample``, as one 2x2 convolution."""
    if type(layer) is not Upsample or layer.dims != 2 or not layer.use_conv or _hooked(layer):
        raise NotUnderstoodError(f"a {type(layer).__name__}")
    if size is not None and tuple(size[2:]) != (2 * x.shape[2], 2 * x.shape[3]):
        raise NotUnderstoodError("a size that halving had rounded")
    weight, bias = _weights(layer.conv, nn.Conv2d, x)
    kernel = doubling_kernel(weight).to(x.dtype)
    return interleaved(F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1))


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
