"""A student as ``nn.Module``s that can be traced: tensors in, tensors out, nothing to decide.

    text_encoder  input_ids (B, N)                       -> prompt_embeds (B, N, D)
    encoder       noise (B, C, h, w), prompt_embeds      -> mid, skips
    decoder       mid, skips, noise, prompt_embeds       -> latents (B, C, h, w), K at once, summed
    vae           latents                                -> image (B, 3, H, W) in [0, 1]

``Student`` is the four in a row: what ``TiuePipeline`` computes without guidance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core.schedule import OneWaySchedule
from ..core.unet import Features, SplitUNet
from ..shared import SharedUNet
from ..shared.layers import NotUnderstoodError

SAVINGS = ("skips", "attention", "output")
"""The exact savings that pay in a graph. The 2x2 upsampler does not: its interleaving becomes a
scatter there, and its derived kernels would be stored in full precision."""


class TextEncoder(nn.Module):
    """Token ids to prompt embeddings."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.text_encoder = pipe.text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids)[0]


class Encoder(nn.Module):
    """The half of the UNet that runs once, at the first timestep."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule) -> None:
        super().__init__()
        self.unet = SplitUNet(pipe.unet)
        self.timestep = int(schedule.timesteps[0])

    def forward(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        features = self.unet.encode(noise, self.timestep, prompt_embeds)
        return features.mid, *features.skips


class Decoder(nn.Module):
    """K decoders and their combination (Eq. 11), with the exact savings where they can be had."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule) -> None:
        super().__init__()
        unet = pipe.unet
        self.plain, self.timesteps = SplitUNet(unet), schedule.timesteps.tolist()
        self.signal = schedule.signal
        self.weights: Tensor
        self.register_buffer("weights", schedule.weights.float())
        self.thrifty: Any = None
        try:
            self.thrifty = SharedUNet(unet, SAVINGS).decoder()
        except NotUnderstoodError as error:
            warnings.warn(f"{error}: the decoders are exported without savings", stacklevel=2)
        if self.thrifty is not None:
            temb = unet.time_embedding(unet.time_proj(schedule.timesteps).to(unet.dtype))
            temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)
            table = [row.detach().clone() for row in self.thrifty.table(temb)]
            self.table = nn.ParameterList(nn.Parameter(row, requires_grad=False) for row in table)

    def forward(
        self, mid: Tensor, skips: Sequence[Tensor], noise: Tensor, prompt_embeds: Tensor
    ) -> Tensor:
        if self.thrifty is not None:
            context = prompt_embeds.to(mid.dtype)
            total = self.thrifty(mid, tuple(skips), list(self.table), context, self.weights)
        else:
            features = Features(mid, tuple(skips), (noise.shape[-2], noise.shape[-1]))
            total = self.plain.decode(features, self.timesteps, prompt_embeds, weights=self.weights)
        return self.signal * noise.float() + total


class Vae(nn.Module):
    """Latents to a picture in [0, 1]."""

    def __init__(self, pipe: Any, vae: Any) -> None:
        super().__init__()
        self.vae, self.decode = vae, pipe.decode

    def forward(self, latents: Tensor) -> Tensor:
        return (self.decode(self.vae, latents).float() / 2 + 0.5).clamp(0, 1)


class Student(nn.Module):
    """The whole student: token ids and noise to a picture, and its latents beside it."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule, vae: Any) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(pipe)
        self.encoder = Encoder(pipe, schedule)
        self.decoder = Decoder(pipe, schedule)
        self.vae = Vae(pipe, vae)

    def forward(self, input_ids: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        prompt_embeds = self.text_encoder(input_ids)
        mid, *skips = self.encoder(noise, prompt_embeds)
        latents = self.decoder(mid, skips, noise, prompt_embeds)
        return self.vae(latents), latents
