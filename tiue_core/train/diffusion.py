"""The forward process and the guided sampler that teachers and judges of teachers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler

from ..pipelines.sdxl import encode_ids


@dataclass(frozen=True)
class Noising:
    """z_t = sqrt(alpha_t) z_0 + sigma_t eps, with alpha the cumulative product (1000,)."""

    alphas: torch.Tensor

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Noising:
        return cls(scheduler.alphas_cumprod.float())

    def to(self, device: torch.device) -> Noising:
        return Noising(self.alphas.to(device))

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t, shaped to broadcast over latents (B, 1, 1, 1)."""
        return self.alphas[timesteps][:, None, None, None]

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t / sigma_t^2, (B,)."""
        alpha = self.alphas[timesteps]
        return alpha / (1 - alpha)

    def add(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        alpha = self.alpha(timesteps)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """Prompts -> padded token ids (N, model_max_length)."""
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def token_ids(pipeline: Any, prompts: list[str]) -> torch.Tensor:
    """Prompts -> token ids (N, L); for two text encoders both tokenizers' in a row, (N, 2 L)."""
    second = getattr(pipeline, "tokenizer_2", None)
    tokenizers = [pipeline.tokenizer] + ([second] if second is not None else [])
    return torch.cat([tokenize(tokenizer, prompts) for tokenizer in tokenizers], dim=1)


def embed(pipeline: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Token ids -> what the UNet is told (N, L, D); SDXL's with the pooled text (``xl.pack``)."""
    encoder, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    tokens = tokens.to(encoder.device)
    if second is None:
        return encoder(tokens)[0]
    blank = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    if pipeline.config["force_zeros_for_empty_prompt"]:
        blank = (tokens == token_ids(pipeline, [""]).to(tokens.device)).all(1)
    ids, second_ids = tokens.chunk(2, dim=1)
    return encode_ids(encoder, second, ids, second_ids, blank)


def guided(
    predict: Callable[..., Any],
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompt_embeds: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Classifier-free guidance; ``prompt_embeds`` (2B, N, D), the empty prompts first."""
    twice = timesteps.expand(len(latents)).repeat(2)
    unconditional, conditional = (
        predict(latents.repeat(2, 1, 1, 1), twice, prompt_embeds).sample.float().chunk(2)
    )
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def guided_ddim(
    unet: Any,
    scheduler: Any,
    latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    *,
    steps: int = 50,
    guidance: float = 4.5,
) -> torch.Tensor:
    """Deterministic DDIM from noise (B, C, h, w) to latents, as the teacher is meant to run."""
    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    for timestep in ddim.timesteps:
        noise = guided(unet, latents, timestep.to(latents.device), prompt_embeds, guidance)
        latents = ddim.step(noise, timestep, latents).prev_sample
    return latents
