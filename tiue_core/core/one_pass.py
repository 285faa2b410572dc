"""The method, in three lines: encode once, decode K times, combine in closed form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .schedule import OneWaySchedule

Stage = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class OnePass:
    """One pass, with what it went through."""

    features: Any  # what the encoder handed on; ``unet.Features`` for diffusers' UNets
    predictions: Tensor  # (K, B, C, h, w), or their sum weighted by E_t, (B, C, h, w)
    latents: Tensor  # (B, C, h, w), the z_0 of Eq. 11


def one_pass(
    unet: Any,
    schedule: OneWaySchedule,
    noise: Tensor,
    prompt_embeds: Tensor,
    *,
    decoder_embeds: Tensor | None = None,
    chunk: int | None = None,
    keep_predictions: bool = False,
    stage: Stage = nullcontext,
) -> OnePass:
    """Noise to latents in one pass of the UNet.

    Args:
        unet: anything with ``encode`` and ``decode``, such as ``SplitUNet``.
        noise: (B, C, h, w), N(0, 1).
        prompt_embeds: (B, N, D).
        decoder_embeds: what the decoders are told, if not what the encoder was.
        chunk: timesteps a decoder call; all by default.
        keep_predictions: return all K predictions. By default only their weighted sum exists: the
            output convolution is linear, so it can come after the sum.
        stage: called with "encoder" and "decoders", a context around each; for timing.
    """
    timesteps, weights = schedule.timesteps, None if keep_predictions else schedule.weights
    told = prompt_embeds if decoder_embeds is None else decoder_embeds
    with stage("encoder"):
        features = unet.encode(noise, timesteps[0], prompt_embeds)
    with stage("decoders"):
        predictions = unet.decode(features, timesteps, told, chunk=chunk, weights=weights)
        latents = schedule.combine(noise, predictions)
    return OnePass(features, predictions, latents)
