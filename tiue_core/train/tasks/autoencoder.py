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
from torch.nn import functional as F

from ... import stickers
from ...stickers.render import render, render_pool, to_unit
from ...stickers.world import World
from ...students.models import load_model
from ..attention import written_out
from ..critic import fool, tell_apart
from ..decoder_teachers import PAINTED, FrozenEncoder, Guesses, Original, Painted, moments_of
from ..grids import grid
from ..loop import Task
from ..optimizers import adam, backward, descend, optimizer, optimizer_step
from ..patches import PatchCritic, apart, edges
from ..recipe import AutoencoderRecipe
from ..widen import widened

logger = logging.getLogger("tiue.train")


def load_autoencoder(name: str) -> AutoencoderKL:
    """The autoencoder of a folder, or the shipped one for ``stickers``."""
    shipped = Path(stickers.__file__).parent / "student" / "vae"
    return load_model(AutoencoderKL, shipped if name == "stickers" else Path(name))


class AutoencoderTask(Task):
    """L1 + MSE on random mirrored crops, and a light KL that keeps the latents near N(0, 1)."""

    averaged = ("vae",)

    def __init__(self, recipe: AutoencoderRecipe):
        self.recipe = recipe
        self.world = World(**recipe.world.model_dump())
        self.vae = AutoencoderKL(**recipe.model)
        if recipe.init:
            known = load_autoencoder(recipe.init)
            self.vae.load_state_dict(widened(known.state_dict(), self.vae.state_dict()))
            self.vae.register_to_config(scaling_factor=known.config.scaling_factor)
        if recipe.freeze_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        scenes = self.world.scenes(recipe.pool, recipe.seed)
        self.pool, self.captions = render(scenes), [scene.caption for scene in scenes]
        whole = recipe.crop >= self.pool.shape[-1]
        self.frozen = FrozenEncoder(self.vae, whole) if recipe.freeze_encoder else None
        self.original: Original | None = None
        if recipe.latents_of:
            self.original = Original(load_autoencoder(recipe.latents_of), whole)
            factor = self.original.vae.config.scaling_factor
            self.vae.register_to_config(scaling_factor=factor)
        self.modules: Mapping[str, nn.Module] = {"vae": self.vae}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"vae": optimizer(recipe, [self.vae])}
        if recipe.adversarial:
            self.modules = {**self.modules, "critic": PatchCritic()}
            learned = list(self.modules["critic"].parameters())
            self.optimizers["critic"] = adam(recipe, learned, recipe.critic_learning_rate)
        captions = self.captions[:PAINTED]
        self.painted = Painted(recipe.painted, captions, recipe.seed) if recipe.painted else None
        self.guesses = Guesses(recipe.smudge, recipe.smudge_range) if recipe.smudge else None

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        for module in self.modules.values():
            module.to(accelerator.device)
        if self.original is not None:
            self.original.vae.to(accelerator.device)
        if accelerator.device.type == "cpu":
            written_out(self.vae)
        if self.guesses is not None:
            self.guesses.to(accelerator.device)

    def _forward(
        self,
        images: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
        halved: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        moments, strayed = self._moments(images)
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.float().clamp(-30, 20)
        extra = self.recipe.latent_noise / self.vae.config.scaling_factor
        latents = mean + (torch.exp(0.5 * log_variance) + extra) * noise
        if self.guesses is not None:
            captions = [self.captions[row] for row, _ in self.drawn[: len(latents) // 2]]
            latents = self.guesses(latents, captions, generator)
        if halved:
            latents = F.avg_pool2d(latents, 2)
        decoded = self.vae.decoder(self.vae.post_quant_conv(latents))
        return decoded, mean, log_variance, strayed

    def _moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a batch's latents, and how far they stray from those that are to be kept."""
        if self.original is not None:
            return self.original.moments(self.vae, images, self.drawn)
        nowhere = images.new_zeros(())
        if self.frozen is not None:
            return self.frozen(images, self.drawn), nowhere
        return moments_of(self.vae, images), nowhere

    def _batch(self, generator: torch.Generator) -> torch.Tensor:
        size, side = self.recipe.crop, self.pool.shape[-1]
        rows = torch.randint(len(self.pool), (self.recipe.batch_size,), generator=generator)
        corners = torch.randint(side - size + 1, (len(rows), 2), generator=generator)
        mirror = torch.rand(len(rows), generator=generator) < 0.5
        self.drawn = list(zip(rows.tolist(), mirror.tolist(), strict=True))
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
        # Drawn where it is 0, too: of recipes that draw more after it, every update stays the same.
        halved = bool(torch.rand((), generator=generator) < recipe.equivariance)
        with self.accelerator.autocast():
            decoded, mean, log_variance, strayed = self._forward(images, noise, generator, halved)
        if halved:
            images = F.avg_pool2d(images, 2)
        decoded = decoded.float()
        error = decoded - images
        mse = error.square().mean()
        kl = 0.5 * (mean.float().square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error.abs().mean() + recipe.mse * mse + (0.0 if warm else recipe.kl) * kl
        if self.original is not None:
            loss = loss + strayed
        if recipe.edges:
            loss = loss + recipe.edges * edges(decoded, images)
        logs: dict[str, torch.Tensor] = {}
        if recipe.adversarial:
            freely = decoded[:0]
            if self.painted is not None:
                count = recipe.batch_size // 2
                freely, moved = self.painted.decoded(self.vae, count, generator, self.accelerator)
                loss = loss + moved
            fooled, likeness, logs = self._criticism(decoded, images, freely)
            loss = loss + recipe.likeness * likeness
            loss = loss + recipe.adversarial * _balance(loss, fooled, decoded) * fooled
        logs["grad_norm"] = descend(
            self.accelerator, self.optimizers["vae"], loss, recipe.grad_clip
        )
        if recipe.adversarial:
            optimizer_step(self.accelerator, self.optimizers["critic"], recipe.grad_clip)
        psnr = -10 * torch.log10(mse.detach() / 4)
        if self.original is not None:
            logs["strayed"] = strayed.detach()
        return {"loss": loss.detach(), "psnr": psnr, "kl": kl.detach(), **logs}

    def _criticism(
        self, decoded: torch.Tensor, images: torch.Tensor, freely: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """How well the critic is fooled and what it sees apart; its own loss goes back at once."""
        critic, autocast = self.modules["critic"], self.accelerator.autocast
        fakes = torch.cat([decoded, freely])
        with autocast():
            told = tell_apart(critic(images)[-1:], critic(fakes.detach())[-1:])
        backward(self.accelerator, told)
        critic.requires_grad_(False)  # the decoder's loss must not move it
        with autocast():
            seen = critic(fakes)
            with torch.no_grad():
                wanted = critic(images)
        critic.requires_grad_(True)
        likeness = apart([each[: len(images)] for each in seen], wanted)
        return fool(seen[-1:]), likeness, {"critic": told.detach(), "likeness": likeness.detach()}

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
        if not self.recipe.freeze_encoder and self.original is None:
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


def _balance(loss: torch.Tensor, fooled: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """What makes both pull alike at the picture (VQGAN's weight, arXiv:2012.09841)."""
    one, other = (
        torch.autograd.grad(term, decoded, retain_graph=True)[0].norm() for term in (loss, fooled)
    )
    return (one / other.clamp(min=1e-8)).clamp(max=1e4)
