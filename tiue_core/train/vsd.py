"""What every distillation into one pass is made of: the pass, and variational score distillation.

The teacher's UNet carries adapters that learn what the student's pictures look like; switched off
(``plain``) it is the teacher itself, so one UNet in memory serves as both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from ..core.forward_process import Noising, ddim_loop, guided
from ..core.one_pass import one_pass
from ..core.schedule import OneWaySchedule
from ..core.unet import SplitUNet
from .draws import Source, integers, normal


def one_pass_of(
    accelerator: Accelerator,
    student: SplitUNet,
    schedule: OneWaySchedule,
    noise: Tensor,
    prompt_embeds: Tensor,
) -> tuple[Tensor, Tensor]:
    """Noise (B, C, h, w) -> the K predictions (K, B, C, h, w) and z_0 (B, C, h, w), float32."""
    with accelerator.autocast():
        passed = one_pass(student, schedule, noise, prompt_embeds, keep_predictions=True)
    return passed.predictions.float(), passed.latents


def score_distillation(
    accelerator: Accelerator,
    teacher: Any,
    noising: Noising,
    latents: Tensor,
    prompt_embeds: Tensor,
    generator: Source,
    *,
    guidance: float,
    levels: tuple[int, int],
) -> Tensor:
    """0.5 MSE(z_0, detach(z_0 - g)) with g = sigma_t^2 (teacher - LoRA teacher), of their noises.

    ``prompt_embeds`` (2B, N, D), the empty prompts first; ``levels`` bound the timesteps.
    """
    timesteps, noise = noise_like(latents, generator, levels)
    noisy = noising.add(latents.detach(), noise, timesteps)
    with torch.no_grad(), accelerator.autocast():
        with plain(teacher):
            wanted = guided(teacher, noisy, timesteps, prompt_embeds, guidance)
        made = guided(teacher, noisy, timesteps, prompt_embeds, guidance)
    wanted, made = (noising.noise_in(one, noisy, timesteps) for one in (wanted, made))
    gradient = torch.nan_to_num((1 - noising.alpha(timesteps)) * (wanted - made))
    return 0.5 * (latents - (latents - gradient).detach()).square().mean()


def imitation(
    accelerator: Accelerator,
    teacher: Any,
    schedule: OneWaySchedule,
    passed: tuple[Tensor, Tensor],
    noise: Tensor,
    prompt_embeds: Tensor,
    guidance: float,
) -> Tensor:
    """Regression onto the teacher's guided DDIM loop over the same K timesteps and noise.

    A quick way from "the encoder has never been shared" to where VSD starts to matter.

    Args:
        passed: the K predictions (K, B, C, h, w) and z_0 (B, C, h, w).
        prompt_embeds: (2B, N, D), the empty prompts first.
    """

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        return guided(teacher, z, timestep.to(z.device), prompt_embeds, guidance)

    with torch.no_grad(), accelerator.autocast(), plain(teacher):
        wanted, z = ddim_loop(predict, schedule, noise)
    predictions, latents = passed
    return (predictions - wanted).square().mean() + (latents - z).square().mean()


def denoising(
    accelerator: Accelerator,
    teacher: Any,
    noising: Noising,
    latents: Tensor,
    prompt_embeds: Tensor,
    generator: Source,
    *,
    levels: tuple[int, int],
) -> Tensor:
    """The LoRA teacher's own loss: its answer on the student's noised output, times alpha_t."""
    timesteps, noise = noise_like(latents, generator, levels)
    noisy = noising.add(latents, noise, timesteps)
    with accelerator.autocast():
        predicted = teacher(noisy, timesteps, prompt_embeds).sample
    answer = noising.answer(latents, noise, timesteps)
    return (noising.alpha(timesteps) * (predicted.float() - answer).square()).mean()


def normal_kl(predictions: Tensor) -> Tensor:
    """KL(N(mu, v) || N(0, 1)) = (v + mu^2 - 1 - ln v) / 2 of every prediction, summed.

    mu and v are the mean and unbiased variance over one whole prediction; (K, B, C, h, w) -> ().
    """
    flat = predictions.flatten(2)
    mean, variance = flat.mean(-1), flat.var(-1)
    return 0.5 * (variance + mean.square() - 1 - variance.log()).sum()


@contextmanager
def plain(unet: Any) -> Iterator[None]:
    """The UNet without its adapters."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def noise_like(
    latents: Tensor, generator: Source, levels: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Timesteps (B,) within ``levels`` and noise of the latents' shape, on their device."""
    timesteps = integers(generator, *levels, len(latents))
    noise = normal(generator, tuple(latents.shape))
    return timesteps.to(latents.device), noise.to(latents.device)


def perceptual(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """LPIPS's distance without learned weights: of feature maps (B, C_i, h_i, w_i), each place's
    channels at unit length; mean over maps. What sees them is a denoiser, not a classifier."""
    losses = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
        for a, b in zip(fake, real, strict=True)
    ]
    return torch.stack(losses).mean()


def distance(latents: Tensor, wanted: Tensor) -> Tensor:
    """Nearly L1: where there are two ways to go it chooses one, where L2 would paint between."""
    return F.smooth_l1_loss(latents, wanted, beta=0.1)
