"""What an autoencoder may learn from beside the scenes themselves, each by its key of the recipe:

latents_of   ``Original``   another autoencoder, whose latents are kept
smudge       ``Guesses``    a diffusion model, which gives the decoder soft latents
painted      ``Painted``    a student, whose latents the decoder decodes for its critic
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ..core.forward_process import Noising
from ..pipelines.base import TiuePipeline
from ..pipelines.text import embed, token_ids
from ..pipelines.vae import scaled, unscaled
from .attention import written_out

PAINTED = 480  # pictures of a student that its decoder's critic may see


def moments_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to mean and log variance of their latents, (B, 2 C, h, w)."""
    return vae.quant_conv(vae.encoder(images))


class FrozenEncoder:
    """``moments_of`` an autoencoder whose encoder does not learn; of a whole scene asked once."""

    def __init__(self, vae: AutoencoderKL, whole: bool) -> None:
        self.vae, self.whole = vae, whole
        self._known: dict[tuple[int, bool], Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, drawn: Sequence[tuple[int, bool]]) -> Tensor:
        """Moments of ``images``, which show the scenes ``drawn``: (number, mirrored)."""
        if not self.whole:  # crops of one scene differ
            return moments_of(self.vae, images)
        new = [i for i, key in enumerate(drawn) if key not in self._known]
        if new:
            found = moments_of(self.vae, images[new])
            self._known.update(zip((drawn[i] for i in new), found, strict=True))
        return torch.stack([self._known[key] for key in drawn])


class Original:
    """The autoencoder whose latents one of another shape learns to keep."""

    def __init__(self, vae: AutoencoderKL, whole: bool) -> None:
        self.vae = vae.requires_grad_(False)
        self._encode = FrozenEncoder(vae, whole)

    def moments(
        self, vae: AutoencoderKL, images: Tensor, drawn: Sequence[tuple[int, bool]]
    ) -> tuple[Tensor, Tensor]:
        """The original's moments of a batch, for its second half those of ``vae``; and how far
        these stray, in units of the latents' deviation: a part of the loss."""
        moments, half = self._encode(images, drawn), len(images) // 2
        own, kept = moments_of(vae, images[half:]), moments[half:]
        (mean, log), (wanted, wanted_log) = (m.float().chunk(2, dim=1) for m in (own, kept))
        factor = vae.config.scaling_factor
        strayed = factor**2 * F.mse_loss(mean, wanted) + 0.01 * F.l1_loss(log, wanted_log)
        return torch.cat([moments[:half], own.to(moments.dtype)]), strayed


class Guesses:
    """Latents as a diffusion model guesses them from noise of some levels: nearly right, and soft.

    That is what a decoder is given in use, and here it is told what was meant.
    """

    def __init__(self, name: str, levels: tuple[int, int]) -> None:
        self.pipe, self.levels = TiuePipeline.from_pretrained(name), levels

    def to(self, device: torch.device) -> None:
        self.pipe.to(device)
        if device.type == "cpu":
            written_out(self.pipe.unet)
        self.noising = Noising.from_scheduler(self.pipe.scheduler).to(device)

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, captions: Sequence[str], generator: torch.Generator
    ) -> Tensor:
        """Latents (B, C, h, w), as many of the first as there are captions replaced by guesses."""
        count, device = len(captions), latents.device
        timesteps = torch.randint(*self.levels, (count,), generator=generator).to(device)
        noise = torch.randn(latents[:count].shape, generator=generator).to(device)
        z = scaled(self.pipe.vae, latents[:count])
        noisy = self.noising.add(z, noise, timesteps)
        prompt_embeds = embed(self.pipe, token_ids(self.pipe, list(captions)))
        predicted = self.pipe.unet(noisy, timesteps, prompt_embeds).sample
        alpha = self.noising.alpha(timesteps)
        guess = (noisy - (1 - alpha).sqrt() * predicted.float()) / alpha.sqrt()
        return torch.cat([unscaled(self.pipe.vae, guess), latents[count:]])


class Painted:
    """A student's latents, as its decoder takes them, and its pictures in a quarter of the size.

    Nobody knows what they should show: a critic says how sharp, colours and places stay.
    """

    @torch.no_grad()
    def __init__(self, name: str, captions: Sequence[str], seed: int) -> None:
        student = TiuePipeline.from_pretrained(name)
        latents, small = [], []
        for first in range(0, len(captions), 8):
            part = list(captions[first : first + 8])
            seeds = [seed + first + i for i in range(len(part))]
            z = unscaled(student.vae, student(part, seed=seeds, output_type="latent").images)
            latents.append(z)
            small.append(F.avg_pool2d(student.vae.decode(z).sample.float(), 4))
        self.latents, self.small = torch.cat(latents), torch.cat(small)

    def decoded(
        self, vae: AutoencoderKL, count: int, generator: torch.Generator, accelerator: Accelerator
    ) -> tuple[Tensor, Tensor]:
        """``count`` of them decoded, and how far colours and places have moved."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        latents, before = (each[rows].to(accelerator.device) for each in (self.latents, self.small))
        with accelerator.autocast():
            decoded = vae.decoder(vae.post_quant_conv(latents)).float()
        return decoded, F.l1_loss(F.avg_pool2d(decoded, 4), before)
