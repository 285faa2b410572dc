"""Stage 3: the teacher, a text-conditioned diffusion model from scratch.

UNet and text encoder learn together from the ordinary denoising loss on latents of rendered scenes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...core.forward_process import Noising, guided_ddim
from ...pipelines.base import TiuePipeline
from ...pipelines.text import tokenize
from ...pipelines.vae import decode, encode_mean
from ...stickers.render import render_pool, to_unit
from ...stickers.words import make_tokenizer
from ...stickers.world import World
from ...students.models import load_model
from ..grids import grid
from ..loop import Task, adam, descend
from ..recipe import TeacherRecipe

logger = logging.getLogger("tiue.train")

#: Stable Diffusion 2.1-base's scheduler; the miniature keeps it to the letter.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


class TeacherTask(Task):
    """Noise prediction, prompts dropped now and then so that guidance works."""

    averaged = ("unet", "text_encoder")

    def __init__(self, recipe: TeacherRecipe):
        self.recipe = recipe
        self.world = World(**recipe.world.model_dump())
        self.vae = load_model(AutoencoderKL, recipe.autoencoder)
        self.vae.eval().requires_grad_(False)
        self.tokenizer = make_tokenizer(
            World(kinds=10_000, backgrounds=10).corpus(),
            recipe.out / "tokenizer",
            recipe.max_tokens,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                max_position_embeddings=recipe.max_tokens,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                **recipe.text_encoder,
            )
        )
        self.unet = UNet2DConditionModel(**recipe.unet)
        self.modules: Mapping[str, nn.Module] = {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
        }
        learned = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizers: dict[str, torch.optim.Optimizer] = {"teacher": adam(recipe, learned)}
        self.scheduler = DDIMScheduler(**SCHEDULER)
        self.captions = [s.caption for s in self.world.scenes(recipe.pool, recipe.seed)]
        self.tokens = tokenize(self.tokenizer, self.captions).input_ids
        self.empty = tokenize(self.tokenizer, [""]).input_ids

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        device = accelerator.device
        for module in (self.vae, *self.modules.values()):
            module.to(device)
        self.noising = Noising.from_scheduler(self.scheduler).to(device)
        self.latents = self._latents()

    @torch.no_grad()
    def _latents(self) -> torch.Tensor:
        """The pool as latents of unit variance (N, C, h, w); encoded once, then read."""
        file = self.recipe.out / "latents.safetensors"
        if file.is_file():
            return load_file(file)["latents"].float()
        logger.info("encoding %d scenes", self.recipe.pool)
        pixels = render_pool(self.world, self.recipe.pool, self.recipe.seed)
        with self.accelerator.autocast():
            latents = torch.cat(
                [
                    encode_mean(self.vae, to_unit(batch).to(self.accelerator.device))
                    for batch in pixels.split(64)
                ]
            )
        latents = latents.float().cpu().contiguous()
        save_file({"latents": latents.half()}, file)
        return latents

    def update(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        recipe, device = self.recipe, self.accelerator.device
        rows = torch.randint(len(self.latents), (recipe.batch_size,), generator=generator)
        clean = self.latents[rows].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        timesteps = torch.randint(1000, (len(rows),), generator=generator).to(device)
        dropped = torch.rand(len(rows), 1, generator=generator) < recipe.drop_prompt
        tokens = torch.where(dropped, self.empty, self.tokens[rows]).to(device)
        noisy = self.noising.add(clean, noise, timesteps)
        with self.accelerator.autocast():
            prompt_embeds = self.text_encoder(tokens)[0]
            predicted = self.unet(noisy, timesteps, prompt_embeds).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        snr = self.noising.snr(timesteps)
        gamma = recipe.min_snr_gamma
        weight = snr.clamp(max=gamma) / snr if gamma else torch.ones_like(snr)
        loss = (weight * error).mean()
        norm = descend(self.accelerator, self.optimizers["teacher"], loss, recipe.grad_clip)
        return {"loss": loss.detach(), "mse": error.detach().mean(), "grad_norm": norm}

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        device = self.accelerator.device
        generator = torch.Generator().manual_seed(self.recipe.seed)
        scenes = World(**{**self.recipe.world.model_dump(), "pairs": 0.2}).scenes(32, 123)
        captions = [scene.caption for scene in scenes]
        asked = tokenize(self.tokenizer, captions).input_ids
        tokens = torch.cat([self.empty.expand(32, -1), asked])
        shape = (32, *self.latents.shape[1:])
        with self.accelerator.autocast():
            prompt_embeds = modules["text_encoder"](tokens.to(device))[0]
            latents = guided_ddim(
                modules["unet"],
                self.scheduler,
                torch.randn(shape, generator=generator).to(device),
                prompt_embeds,
                steps=25,
                guidance=3.0,
            )
            images = decode(self.vae, latents)
        return grid(images, columns=8)

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        TiuePipeline(
            vae=self.vae,
            text_encoder=modules["text_encoder"],
            tokenizer=self.tokenizer,
            unet=modules["unet"],
            scheduler=self.scheduler,
        ).save_pretrained(folder)
