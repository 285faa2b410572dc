"""The forward process, and the backward loop that one pass leaves out.

z_t     = sqrt(alpha_t) z_0 + sigma_t eps,   sigma_t^2 = 1 - alpha_t      (Eq. 1)
z_{t-1} = A_t z_t + B_t f_t(z_t)                                           (Eq. 7 to 10)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .guidance import guide
from .schedule import OneWaySchedule
from .unet import SplitUNet


@dataclass(frozen=True)
class Noising:
    """The forward process of a scheduler; ``alphas`` (T,) are the cumulative products.

    ``prediction`` is what its model answers: "epsilon" the noise, "sample" z_0, "v_prediction"
    v = sqrt(alpha_t) eps - sigma_t z_0 (arXiv:2202.00512).
    """

    alphas: Tensor
    prediction: str = "epsilon"

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Noising:
        prediction = scheduler.config.get("prediction_type", "epsilon")
        return cls(scheduler.alphas_cumprod.float(), prediction)

    def to(self, device: torch.device) -> Noising:
        return replace(self, alphas=self.alphas.to(device))

    def answer(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a model should say of ``add(clean, noise, timesteps)``, (B, C, h, w)."""
        if self.prediction == "sample":
            return clean
        if self.prediction == "v_prediction":
            alpha = self.alpha(timesteps)
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return noise

    def noise_in(self, answer: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a model's answer about z_t says there is, (B, C, h, w)."""
        alpha = self.alpha(timesteps)
        if self.prediction == "sample":
            return (noisy - alpha.sqrt() * answer) / (1 - alpha).sqrt()
        if self.prediction == "v_prediction":
            return alpha.sqrt() * answer + (1 - alpha).sqrt() * noisy
        return answer

    def alpha(self, timesteps: Tensor) -> Tensor:
        """alpha_t of timesteps (B,), shaped to broadcast over latents, (B, 1, 1, 1)."""
        return self.alphas[timesteps][:, None, None, None]

    def snr(self, timesteps: Tensor) -> Tensor:
        """alpha_t / sigma_t^2, (B,)."""
        alpha = self.alphas[timesteps]
        return alpha / (1 - alpha)

    def add(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t (B, C, h, w) of z_0 and noise of that shape at timesteps (B,)."""
        alpha = self.alpha(timesteps)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def guided(
    predict: Callable[..., Any],
    latents: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    guidance: float,
) -> Tensor:
    """A guided prediction (B, C, h, w); ``prompt_embeds`` (2B, N, D), the empty prompts first."""
    twice = timesteps.expand(len(latents)).repeat(2)
    both = predict(latents.repeat(2, 1, 1, 1), twice, prompt_embeds).sample.float()
    return guide(both, guidance)


@torch.no_grad()
def guided_ddim(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    *,
    steps: int = 50,
    guidance: float = 4.5,
) -> Tensor:
    """Deterministic DDIM from noise (B, C, h, w) to latents, as the teacher is meant to run."""
    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    for timestep in ddim.timesteps:
        noise = guided(unet, latents, timestep.to(latents.device), prompt_embeds, guidance)
        latents = ddim.step(noise, timestep, latents).prev_sample
    return latents


def ddim_loop(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: OneWaySchedule, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """``predict(z, timestep)`` K times, each on the latents of the one before (Eq. 7 to 10).

    Returns the K predictions (K, B, C, h, w) and z_0 (B, C, h, w).
    """
    predictions, z = [], noise
    steps = zip(schedule.timesteps, schedule.coefficients.tolist(), strict=True)
    for timestep, (a, b) in steps:
        predictions.append(predict(z, timestep))
        z = a * z + b * predictions[-1]
    return torch.stack(predictions), z


def sequential(
    student: SplitUNet, schedule: OneWaySchedule, noise: Tensor, prompt_embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """The student with an encoder pass for each of the K steps, float32; as ``ddim_loop``."""

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        features = student.encode(z, timestep, prompt_embeds)
        return student.decode(features, timestep[None], prompt_embeds)[0].float()

    return ddim_loop(predict, schedule, noise)
