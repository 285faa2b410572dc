"""The parts of a decoder, each in two ways: as diffusers runs it (``Plain...``), and thriftily.

Inside the decoder the order is image-major: features are (B * k, C, H, W) with k = 1 before the
first time embedding and k = K after it, so that one image's K timesteps lie side by side and share
by broadcasting, without copies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ..core.schedule import weighted_sum
from .exact import NotUnderstoodError, doubling_kernel, interleaved, split_groups
from .layers import Conv, drops, known, untouched, weight_of


def understood(processor: Any) -> bool:
    """Whether it is attention as diffusers writes it."""
    return type(processor) in (AttnProcessor, AttnProcessor2_0) and known(type(processor))


def spread(x: Tensor, B: int, K: int) -> Tensor:
    """(B * k, ...) to (B * K, ...): what is the same at all timesteps, once for each."""
    return x if len(x) == B * K else x.repeat_interleave(K, 0)


class PlainResnet(nn.Module):
    """A decoder ResNet on concat(h, skip)."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.resnet = resnet

    def project(self, temb: Tensor) -> Tensor:
        """What ``forward`` takes of the time embedding: (K, D), or (B, K, D), each image's."""
        return temb

    def share(self, skip: Tensor) -> Any:
        """What does not depend on the timestep, from (B, S, H, W)."""
        return skip

    def whole(self, h: Tensor, skip: Tensor, temb: Tensor) -> Tensor:
        """Both of it."""
        return self(h, self.share(skip), temb)

    def forward(self, h: Tensor, shared: Any, temb: Tensor) -> Tensor:
        """(B * k, C, H, W) to (B * K, C', H, W)."""
        B, K = len(shared), temb.shape[-2]
        x = torch.cat([spread(h, B, K), spread(shared, B, K)], 1)
        return self.resnet(x, temb.expand(B, -1, -1).flatten(0, 1))

    def watched(self) -> list[nn.Module]:
        """Modules that are not called, but read: on a change, this part must be made again."""
        return []


class Resnet(PlainResnet):
    """The same by (a): the skip's share of conv1 and of the shortcut once for all timesteps."""

    def __init__(self, resnet: Any, h_channels: int) -> None:
        super().__init__(resnet)
        untouched(resnet, ResnetBlock2D)
        norm = resnet.norm1
        for module in (norm, resnet.norm2):
            untouched(module, nn.GroupNorm)
        if type(resnet.nonlinearity) is not nn.SiLU or resnet.time_embedding_norm != "default":
            raise NotUnderstoodError("a ResNet unlike Stable Diffusion's")
        untouched(resnet.dropout, nn.Dropout)
        if resnet.up or resnet.down or resnet.time_emb_proj is None or drops(resnet.dropout):
            raise NotUnderstoodError("a ResNet that resamples or drops")
        self.h_channels = h_channels
        groups, own = split_groups(norm.num_channels, norm.num_groups, h_channels)
        self.own_groups, self.own = groups, own
        self.groups = norm.num_groups - groups
        if resnet.conv_shortcut is None:
            raise NotUnderstoodError("a decoder ResNet without a shortcut")
        weight, bias = weight_of(resnet.conv1)
        self.h_conv = Conv(weight[:, :own], None, 1, like=weight)
        self.skip_conv = Conv(weight[:, own:], bias, 1, like=weight)
        weight, bias = weight_of(resnet.conv_shortcut)
        self.h_shortcut = Conv(weight[:, :h_channels], None, 0, like=weight)
        self.skip_shortcut = Conv(weight[:, h_channels:], bias, 0, like=weight)

    def project(self, temb: Tensor) -> Tensor:
        """The time embedding in this ResNet's channels, (..., K, C'): an entry of the table (d)."""
        skip_act = self.resnet.skip_time_act
        return self.resnet.time_emb_proj(temb if skip_act else F.silu(temb))

    def share(self, skip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, H, W) to its share of conv1, its share of the shortcut, and the straddling group's
        channels, each (B, ..., H, W)."""
        norm, edge = self.resnet.norm1, self.own - self.h_channels
        x = F.group_norm(
            skip[:, edge:], self.groups, norm.weight[self.own :], norm.bias[self.own :], norm.eps
        )
        return self.skip_conv(F.silu(x)), self.skip_shortcut(skip), skip[:, :edge]

    def forward(self, h: Tensor, shared: tuple[Tensor, Tensor, Tensor], temb: Tensor) -> Tensor:
        """(B * k, C, H, W) to (B * K, C', H, W)."""
        resnet, norm = self.resnet, self.resnet.norm1
        y_skip, x_skip, edge = shared
        B = len(y_skip)
        x = torch.cat([h, spread(edge, B, len(h) // B)], 1) if edge.shape[1] else h
        weight, bias = norm.weight[: self.own], norm.bias[: self.own]
        y = self.h_conv(F.silu(F.group_norm(x, self.own_groups, weight, bias, norm.eps)))
        y = _by_image(y, B).add_(y_skip[:, None]) + temb[..., None, None]  # (B, K, C', H, W)
        y = resnet.conv2(F.silu(resnet.norm2(y.flatten(0, 1))))
        x = _by_image(self.h_shortcut(h), B).add_(x_skip[:, None])
        out = (_by_image(y, B).add_(x)).flatten(0, 1)
        return out if resnet.output_scale_factor == 1 else out / resnet.output_scale_factor

    def watched(self) -> list[nn.Module]:
        r = self.resnet
        return [r, r.norm1, r.conv1, r.conv_shortcut, r.nonlinearity, r.time_emb_proj]


class PlainTransformer(nn.Module):
    """A decoder transformer."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """(B * K, C, H, W) and (B, N, D) to (B * K, C, H, W)."""
        rows = spread(context, len(context), len(h) // len(context))
        return self.transformer(h, encoder_hidden_states=rows, return_dict=False)[0]

    def watched(self) -> list[nn.Module]:
        return []


class Transformer(PlainTransformer):
    """The same by (b): one set of keys and values for the queries of K timesteps."""

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        untouched(transformer, Transformer2DModel)
        for block in transformer.transformer_blocks:
            untouched(block, BasicTransformerBlock)
            untouched(block.attn2, Attention)
            if not understood(block.attn2.processor) or block.attn2.group_norm is not None:
                raise NotUnderstoodError(f"a {type(block.attn2.processor).__name__}")
            if block.norm_type != "layer_norm" or block.pos_embed or hasattr(block, "fuser"):
                raise NotUnderstoodError("a transformer unlike Stable Diffusion's")
            if block.only_cross_attention or block._chunk_size:
                raise NotUnderstoodError("a transformer unlike Stable Diffusion's")
        if not transformer.is_input_continuous:
            raise NotUnderstoodError("a transformer unlike Stable Diffusion's")

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """(B * K, C, H, W) and (B, N, D) to (B * K, C, H, W)."""
        whole, B, size = self.transformer, len(context), h.shape[2:]
        linear = whole.use_linear_projection
        x = whole.norm(h)
        x = whole.proj_in(_tokens(x)) if linear else _tokens(whole.proj_in(x))  # (B * K, HW, C)
        for block in whole.transformer_blocks:
            x = block.attn1(block.norm1(x)) + x
            queries = block.norm2(x).reshape(B, -1, x.shape[-1])  # (B, K * HW, C)
            x = block.attn2(queries, encoder_hidden_states=context).view_as(x) + x
            x = block.ff(block.norm3(x)) + x
        x = _image(whole.proj_out(x), size) if linear else whole.proj_out(_image(x, size))
        return x + h

    def watched(self) -> list[nn.Module]:
        blocks = self.transformer.transformer_blocks
        return [self.transformer, *blocks, *(block.attn2 for block in blocks)]


class PlainUpsampler(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, h: Tensor, size: Any = None) -> Tensor:
        """(N, C, H, W) to (N, C', 2 H, 2 W), or to ``size`` where halving had rounded."""
        return self.upsample(h, size)

    def watched(self) -> list[nn.Module]:
        return []


class Upsampler(PlainUpsampler):
    """The same by (e): one 2x2 convolution, see ``exact.doubling_kernel``."""

    def __init__(self, upsample: Any) -> None:
        super().__init__(upsample)
        untouched(upsample, Upsample2D)
        if upsample.norm is not None or upsample.use_conv_transpose or not upsample.interpolate:
            raise NotUnderstoodError("an upsampler unlike Stable Diffusion's")
        if not upsample.use_conv or upsample.name != "conv":
            raise NotUnderstoodError("an upsampler unlike Stable Diffusion's")
        weight, bias = weight_of(upsample.conv)
        small = doubling_kernel(weight)
        self.conv = Conv(small, None if bias is None else bias.repeat(4), 1, like=weight)

    def forward(self, h: Tensor, size: Any = None) -> Tensor:
        """(N, C, H, W) to (N, C', 2 H, 2 W), or to ``size`` where halving had rounded."""
        if size is not None and tuple(size) != (2 * h.shape[2], 2 * h.shape[3]):
            return self.upsample(h, size)
        return interleaved(self.conv(h))

    def watched(self) -> list[nn.Module]:
        return [self.upsample, self.upsample.conv]


class PlainOutput(nn.Module):
    """The output layers: norm, activation, convolution, and perhaps a weighted sum."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.norm, self.act, self.conv = unet.conv_norm_out, unet.conv_act, unet.conv_out

    def forward(self, h: Tensor, B: int, weights: Tensor | None) -> Tensor:
        """(B * K, C, H, W) to (K, B, C', H, W), or with weights (K,) to their sum (B, C', H, W)."""
        h = h if self.norm is None else self.act(self.norm(h))
        predictions = _by_image(self.conv(h), B).transpose(0, 1)
        return predictions if weights is None else weighted_sum(predictions, weights)

    def watched(self) -> list[nn.Module]:
        return []


class Output(PlainOutput):
    """The same by (c): conv_out is linear, so it comes after the sum."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        if self.norm is None:
            raise NotUnderstoodError("a UNet without output norm")
        _, self.bias = weight_of(self.conv)

    def forward(self, h: Tensor, B: int, weights: Tensor | None) -> Tensor:
        if weights is None:
            return super().forward(h, B, weights)
        h = self.act(self.norm(h))
        sum_h = weighted_sum(
            _by_image(h, B).transpose(0, 1), weights
        )  # (B, C, H, W), float32 at least
        weights = weights.to(sum_h.dtype)
        scale = weights.abs().sum()  # keeps half precision in range
        out = self.conv((sum_h / scale).to(h.dtype)).to(sum_h.dtype) * scale
        if self.bias is not None:  # it came in `scale` times instead of sum(weights) times
            out = out + (weights.sum() - scale) * self.bias.to(out.dtype)[:, None, None]
        return out

    def watched(self) -> list[nn.Module]:
        return [self.conv]


def _by_image(x: Tensor, B: int) -> Tensor:
    """(B * k, ...) to (B, k, ...)."""
    return x.unflatten(0, (B, -1))


def _tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(x: Tensor, size: Any) -> Tensor:
    """(N, H * W, C) to (N, C, H, W)."""
    return x.unflatten(1, size).permute(0, 3, 1, 2)
