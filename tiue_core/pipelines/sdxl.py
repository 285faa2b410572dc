"""SDXL's layout: two text encoders, and a prompt that travels packed (``packed``)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..core.packed import ADDED, encode_ids
from ..core.schedule import STEPS
from .base import TiuePipeline


class TiueXLPipeline(StableDiffusionXLLoraLoaderMixin, TiuePipeline):  # type: ignore[misc]
    """A one-pass student in SDXL's layout. Loaded, saved and called as ``TiuePipeline``.

    An empty prompt is all zeros, as SDXL learned it.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"  # type: ignore[assignment]
    added_conditions = ADDED
    lora_loader = StableDiffusionXLLoraLoaderMixin
    load_lora_weights = TiuePipeline.load_lora_weights  # which diffusers' own would stand before
    text_encoder_2: Any
    tokenizer_2: Any

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        steps: int = STEPS,
        timesteps: list[int] | None = None,
        force_zeros_for_empty_prompt: bool = True,
        feature_extractor: object = None,
        image_encoder: object = None,
    ) -> None:
        super().__init__(vae, text_encoder, tokenizer, unet, scheduler, steps, timesteps)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)

    def _tokenizers(self) -> list[Any]:
        return [self.tokenizer, self.tokenizer_2]

    def _text_encoders(self) -> list[Any]:
        return [self.text_encoder, self.text_encoder_2]

    def _encode_texts(self, texts: list[str], tokens: list[tuple[Tensor, ...]]) -> Tensor:
        (one, _), (two, _) = tokens
        zeros = self.config["force_zeros_for_empty_prompt"]
        blank = torch.tensor([zeros and not text for text in texts])
        encoders = self.text_encoder, self.text_encoder_2
        return self._embed(one, partial(encode_ids, *encoders, one, two, blank))
