"""The authors' optional CLIP term: the student's picture must look like its prompt.

weight(step) * relu(tau - mean cosine), the weight falling linearly to zero: a margin, not a score
to be raised without end. Their ViT-B/32 looks at what TAESD decodes, 224 px.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TiueError
from ..pipelines.vae import decode
from ..students import hub
from ..students.models import load_model, load_tokenizer
from .recipe import DistillRecipe

MEAN = (0.48145466, 0.4578275, 0.40821073)  #: of CLIP's training images
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipTerm:
    """A frozen CLIP and the decoder through which it sees latents."""

    def __init__(self, recipe: DistillRecipe, pipeline: Any):
        from transformers import CLIPModel

        self.recipe, name = recipe, str(recipe.clip_model)
        try:
            folder = hub.folder_of(name, accept=True)
            self.clip = load_model(CLIPModel, folder)
            self.tokenizer = load_tokenizer(folder)
        except TiueError as why:
            raise TiueError(
                f"The CLIP model {name} cannot be loaded ({why}): give `clip_model` a folder or "
                "hub id with safetensors."
            ) from None
        self.clip.eval().requires_grad_(False)
        try:  # TAESD, where the student's latents have one
            pipeline.load_draft()
            self.decoder = pipeline.draft_vae
        except TiueError:
            self.decoder = pipeline.vae
        self.decoder.eval().requires_grad_(False)

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.clip.to(accelerator.device)
        self.decoder.to(accelerator.device)

    def cosines(self, latents: Tensor, prompts: list[str]) -> Tensor:
        """Latents (B, C, h, w) and their prompts -> cosines (B,); gradients reach the latents."""
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        with self.accelerator.autocast():
            images = decode(self.decoder, latents).float()
            images = (images / 2 + 0.5).clamp(0, 1)
            side = self.clip.config.vision_config.image_size
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
            mean, deviation = (
                torch.tensor(values, device=images.device)[:, None, None]
                for values in (MEAN, DEVIATION)
            )
            answer = self.clip(
                input_ids=tokens.input_ids.to(images.device),
                attention_mask=tokens.attention_mask.to(images.device),
                pixel_values=(images - mean) / deviation,
            )
        return nn.functional.cosine_similarity(
            answer.image_embeds.float(), answer.text_embeds.float()
        )

    def weight(self, step: int) -> float:
        """Linear from ``clip`` at the first update to 0 at the last."""
        return self.recipe.clip * max(0.0, 1 - step / self.recipe.steps)

    def __call__(self, latents: Tensor, prompts: list[str]) -> Tensor:
        return torch.relu(self.recipe.clip_margin - self.cosines(latents, prompts).mean())
