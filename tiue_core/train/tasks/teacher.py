"""Stage 3: the teacher, a text-conditioned diffusion model from scratch.

UNet and text encoder learn together from the ordinary denoising loss on latents of rendered scenes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...core.forward_process import Noising, guided_ddim
from ...errors import TiueError
from ...pipelines.base import TiuePipeline
from ...pipelines.text import tokenize
from ...pipelines.vae import decode, encode_mean
from ...stickers.render import render, to_unit
from ...stickers.words import make_tokenizer
from ...stickers.world import Scene, World
from ...students.checkpoint import STABLE_DIFFUSION
from ..attention import written_out
from ..grids import grid
from ..loop import Task
from ..optimizers import descend, optimizer
from ..recipe import TeacherRecipe
from .autoencoder import load_autoencoder

logger = logging.getLogger("tiue.train")

#: Stable Diffusion 2.1-base's scheduler; the miniature keeps it to the letter.
SCHEDULER = {**STABLE_DIFFUSION, "prediction_type": "epsilon"}
ENCODED = 64  #: scenes at once


class TeacherTask(Task):
    """Noise prediction, prompts dropped now and then so that guidance works."""

    averaged = ("unet", "text_encoder")

    def __init__(self, recipe: TeacherRecipe):
        self.recipe = recipe
        self.world = World(**recipe.world.model_dump())
        self.vae = load_autoencoder(recipe.autoencoder)
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
        if recipe.init:
            self._go_on_from(recipe.init)
        self.modules: Mapping[str, nn.Module] = {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "teacher": optimizer(recipe, self.modules.values(), fused=True)
        }
        self.scheduler = DDIMScheduler(**SCHEDULER)
        self.empty = tokenize(self.tokenizer, [""]).input_ids

    def _go_on_from(self, name: str) -> None:
        """The weights of a teacher with the same words and the same latents."""
        teacher = TiuePipeline.from_pretrained(name)
        if teacher.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise TiueError(f"{name} knows other words than this world: leave out `init`.")
        try:
            self.unet.load_state_dict(teacher.unet.state_dict())
            self.text_encoder.load_state_dict(teacher.text_encoder.state_dict())
        except RuntimeError:
            raise TiueError(
                f"{name} is built otherwise than this recipe says: leave out `init`."
            ) from None

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        device = accelerator.device
        for module in (self.vae, *self.modules.values()):
            module.to(device)
        self.noising = Noising.from_scheduler(self.scheduler).to(device)
        if device.type == "cpu":
            for module in self.modules.values():
                written_out(module)
        self.step: int | None = None

    @torch.no_grad()
    def _encode(self, scenes: list[Scene]) -> torch.Tensor:
        """Scenes as latents of unit variance (N, C, h, w)."""
        device = self.accelerator.device
        found = []
        for first in range(0, len(scenes), ENCODED):
            pixels = render(scenes[first : first + ENCODED]).to(device)
            with self.accelerator.autocast():
                found.append(encode_mean(self.vae, to_unit(pixels)).float())
        return torch.cat(found).cpu()

    def _renew(self, step: int) -> None:
        """The pool as it is at an update: every one puts ``fresh`` new scenes in its oldest places.

        What update n draws depends on n alone, so a run that resumes fills the pool it left.
        """
        if self.step is None:
            self._fill()
            renewals = range(max(0, step - self._rounds()), step)
        else:
            renewals = range(step - 1, step)
        if self.recipe.fresh:
            for past in renewals:  # each by itself, so a resumed pool has the same bits
                rows, drawn = zip(*self._fresh(past), strict=True)
                self.latents[list(rows)] = self._encode(list(drawn))
                captions = [scene.caption for scene in drawn]
                self.tokens[list(rows)] = tokenize(self.tokenizer, captions).input_ids
        self.step = step

    def _rounds(self) -> int:
        """Updates after which nothing of an older pool is left."""
        return -(-self.recipe.pool // max(self.recipe.fresh, 1))

    def _fill(self) -> None:
        """The pool at the beginning; encoded once, then read."""
        recipe, file = self.recipe, self.recipe.out / "latents.safetensors"
        scenes = self.world.scenes(recipe.pool, recipe.seed)
        if not file.is_file():
            logger.info("drawing and encoding %d scenes", recipe.pool)
            save_file({"latents": self._encode(scenes).cpu().half().contiguous()}, file)
        self.latents = load_file(file)["latents"].float()
        self.tokens = tokenize(self.tokenizer, [scene.caption for scene in scenes]).input_ids

    def _fresh(self, step: int) -> list[tuple[int, Scene]]:
        """The new scenes of an update, and their places in the pool."""
        recipe = self.recipe
        scenes = self.world.scenes(recipe.fresh, recipe.seed * 1_000_003 + 1_000 + step)
        first = step * recipe.fresh
        return [((first + i) % recipe.pool, scene) for i, scene in enumerate(scenes)]

    def update(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        recipe, device = self.recipe, self.accelerator.device
        self._renew(step)
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
        size = self.unet.config.sample_size
        shape = (32, self.unet.config.in_channels, size, size)
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
