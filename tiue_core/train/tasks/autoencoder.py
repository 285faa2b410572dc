"""Stage 1: the KL autoencoder of the miniature, from scratch on rendered scenes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from ...stickers.render import render_pool, to_unit
from ...stickers.world import World
from ...students.models import load_model
from ..grids import grid
from ..loop import Task, adam, descend
from ..recipe import AutoencoderRecipe

logger = logging.getLogger("tiue.train")


class AutoencoderTask(Task):
    """L1 + MSE on random mirrored crops, and a light KL that keeps the latents near N(0, 1)."""

    averaged = ("vae",)

    def __init__(self, recipe: AutoencoderRecipe):
        self.recipe = recipe
        self.world = World(**recipe.world.model_dump())
        self.vae: AutoencoderKL
        if recipe.init:
            self.vae = load_model(AutoencoderKL, recipe.init)
        else:
            self.vae = AutoencoderKL(**recipe.model)
        if recipe.freeze_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.modules: Mapping[str, nn.Module] = {"vae": self.vae}
        learned = [p for p in self.vae.parameters() if p.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {"vae": adam(recipe, learned)}
        self.pool = render_pool(self.world, recipe.pool, recipe.seed)

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.vae.to(accelerator.device)

    def _forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(images)).chunk(2, dim=1)
        log_variance = log_variance.float().clamp(-30, 20)
        extra = self.recipe.latent_noise / self.vae.config.scaling_factor
        latents = mean + (torch.exp(0.5 * log_variance) + extra) * noise
        return self.vae.decoder(self.vae.post_quant_conv(latents)), mean, log_variance

    def _batch(self, generator: torch.Generator) -> torch.Tensor:
        size, side = self.recipe.crop, self.pool.shape[-1]
        rows = torch.randint(len(self.pool), (self.recipe.batch_size,), generator=generator)
        corners = torch.randint(side - size + 1, (len(rows), 2), generator=generator)
        mirror = torch.rand(len(rows), generator=generator) < 0.5
        crops = [
            self.pool[row, :, y : y + size, x : x + size].flip(-1 if flip else ())
            for row, (y, x), flip in zip(
                rows.tolist(), corners.tolist(), mirror.tolist(), strict=True
            )
        ]
        return to_unit(torch.stack(crops))

    def update(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        recipe, device = self.recipe, self.accelerator.device
        images = self._batch(generator).to(device)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (
            len(images),
            self.vae.config.latent_channels,
            *(s // factor for s in images.shape[2:]),
        )
        noise = torch.randn(shape, generator=generator).to(device)
        # The decoder must first learn to listen: until then the KL alone would silence the latents.
        warm = step < recipe.deterministic
        if warm:
            noise.zero_()
        with self.accelerator.autocast():
            decoded, mean, log_variance = self._forward(images, noise)
        error = decoded.float() - images
        mse = error.square().mean()
        kl = 0.5 * (mean.float().square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error.abs().mean() + recipe.mse * mse + (0.0 if warm else recipe.kl) * kl
        norm = descend(self.accelerator, self.optimizers["vae"], loss, recipe.grad_clip)
        psnr = -10 * torch.log10(mse.detach() / 4)
        return {"loss": loss.detach(), "psnr": psnr, "kl": kl.detach(), "grad_norm": norm}

    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        vae = modules["vae"]
        images = to_unit(render_pool(self.world, 32, self.recipe.seed + 1)).to(
            self.accelerator.device
        )
        decoded = vae(images).sample  # type: ignore[operator]
        rows = torch.cat([images[:16], decoded[:16], images[16:], decoded[16:]])
        psnr = -10 * torch.log10((decoded.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4)
        logger.info("PSNR on 32 fresh scenes: %.2f dB", psnr.mean())
        return grid(rows, columns=16)

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        vae = modules["vae"]
        if not self.recipe.freeze_encoder:
            # Stable Diffusion's convention: the UNet sees latents of unit variance.
            vae.register_to_config(scaling_factor=1 / self._deviation(vae))  # type: ignore
        vae.save_pretrained(folder)  # type: ignore[operator]

    @torch.no_grad()
    def _deviation(self, vae: nn.Module) -> float:
        images = to_unit(render_pool(self.world, 512, self.recipe.seed + 2))
        means = [
            vae.encode(batch.to(self.accelerator.device)).latent_dist.mean  # type: ignore
            for batch in images.split(32)
        ]
        return float(torch.cat(means).std())
