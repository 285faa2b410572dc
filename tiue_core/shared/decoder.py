"""The decoder put together of its parts: tensors in, tensors out, so it compiles and captures."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn

from .exact import NotUnderstoodError
from .layers import untouched
from .parts import (
    Output,
    PlainOutput,
    PlainResnet,
    PlainTransformer,
    PlainUpsampler,
    Resnet,
    Transformer,
    Upsampler,
)

PARTS = ("skips", "attention", "output", "upsampling")  # (a) (b) (c) (e), each can be left out


class Level(nn.Module):
    """An up block: ResNets, each perhaps with a transformer, then perhaps an upsampler."""

    def __init__(self, resnets: list, transformers: list, upsamplers: list) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.transformers = nn.ModuleList(transformers)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: Tensor, skips: list[Tensor], table: list[Tensor], context: Tensor) -> Any:
        """Takes what it needs off the ends of ``skips`` and the beginning of ``table``."""
        resnets: Any = self.resnets
        for i, resnet in enumerate(resnets):
            h = resnet.whole(h, skips.pop(), table.pop(0))
            if self.transformers:
                h = self.transformers[i](h, context)
        for upsampler in self.upsamplers:
            h = upsampler(h, skips[-1].shape[2:])
        return h


class Decoder(nn.Module):
    """Up blocks and output layers of a UNet for K timesteps at once.

    Args:
        unet: a ``UNet2DConditionModel``.
        parts: the savings to use, of ``PARTS``.
        without: single parts that are to run as they are, such as "skips.3", the fourth ResNet.
        say: told why another part runs as it is.

    Raises:
        NotUnderstoodError: the up blocks are not Stable Diffusion's.
    """

    def __init__(
        self,
        unet: Any,
        parts: Collection[str] = PARTS,
        without: Collection[str] = (),
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__()
        counts: Counter[str] = Counter()

        def made(kind: str, thrifty: Any, plain: Any, *arguments: Any) -> Any:
            name = f"{kind}.{counts[kind]}"
            counts[kind] += 1
            part = None
            if kind in parts and name not in without:
                try:
                    part = thrifty(*arguments)
                except NotUnderstoodError as error:
                    say(f"{error}: this part of the decoder runs without savings")
            part = plain(arguments[0]) if part is None else part
            part.name = name
            return part

        h = unet.config.block_out_channels[-1]
        levels = []
        for block in unet.up_blocks:
            untouched(block, (UpBlock2D, CrossAttnUpBlock2D))
            resnets, transformers, upsamplers = [], [], []
            for resnet in block.resnets:
                resnets.append(made("skips", Resnet, PlainResnet, resnet, h))
                h = resnet.out_channels
            for transformer in getattr(block, "attentions", ()):
                transformers.append(made("attention", Transformer, PlainTransformer, transformer))
            for upsampler in block.upsamplers or ():
                upsamplers.append(made("upsampling", Upsampler, PlainUpsampler, upsampler))
            levels.append(Level(resnets, transformers, upsamplers))
        self.levels = nn.ModuleList(levels)
        self.blocks = tuple(unet.up_blocks)  # read, not called
        self.output = made("output", Output, PlainOutput, unet)

    def table(self, temb: Tensor) -> list[Tensor]:
        """(d): of the time embeddings (K, D) or (B, K, D), what each ResNet takes."""
        return [part.project(temb) for part in self.parts() if isinstance(part, PlainResnet)]

    def forward(
        self,
        mid: Tensor,
        skips: tuple[Tensor, ...],
        table: list[Tensor],
        context: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Features of B images, ``table`` of K timesteps, prompts (B, N, D): predictions
        (K, B, C, H, W), or their weighted sum (B, C, H, W)."""
        h, left, rows = mid, list(skips), list(table)
        for level in self.levels:
            h = level(h, left, rows, context)
        return self.output(h, len(mid), weights)

    def all_watched(self) -> list[nn.Module]:
        """Modules that are read, not called: on a change the decoder must be made anew."""
        return [*self.blocks, *(module for part in self.parts() for module in part.watched())]

    def parts(self) -> list[Any]:
        return [part for part in self.modules() if hasattr(part, "watched")]
