"""Text to image in one pass: ``TiuePipeline``, a diffusers pipeline around three calls.

    features    = unet.encode(noise, timesteps[0], prompt)      the encoder, once
    predictions = unet.decode(features, timesteps, prompt)      K decoders, as one batch
    latents     = schedule.combine(noise, predictions)          Eq. 11, no loop

It loads, saves, moves, offloads and takes LoRAs like ``StableDiffusionPipeline``, and reads the
same folders. An image depends on its prompt, its seed, its size and K, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..core.arguments import one_of, seeds_of, texts_of, whole
from ..core.guidance import guide
from ..core.noise import draw_noise
from ..core.one_pass import one_pass
from ..shared.finite import check_picture
from .checks import check_alike, latent_shape
from .memory import in_batches
from .student import StudentPipeline
from .text import check_precision, token_limit, tokenize, warn_of_dropped_words
from .vae import decode, unit

OUTPUT_TYPES = ("pil", "pt", "np", "latent")


@dataclass
class TiueOutput(BaseOutput):
    """Images in order: all of the first prompt, then all of the second, ..."""

    images: Any  # list of PIL images; "pt": (N, 3, H, W) and "np": (N, H, W, 3) in [0, 1]; latents
    seeds: list[int]  # one per image; empty if the caller brought the noise


class TiuePipeline(StudentPipeline):
    """A one-pass text-to-image student, called with prompts.

    Args: those of ``StudentPipeline``, which loads, saves and holds the models.
    """

    decode = staticmethod(decode)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        count: int = 1,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        decoders: str = "exact",
        guidance_scale: float = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        batch_size: int = 8,
        chunk: int | None = None,
        draft: bool = False,
        output_type: str = "pil",
        callback: Callable[[int, int], Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Make ``count`` images of every prompt.

        Args:
            prompt: one or several; whitespace is collapsed, an empty prompt is allowed.
            seed: the images get seed, seed + 1, ...; a list gives one each; None draws one.
            width, height: in pixels, multiples of the VAE's factor; the student's own by default.
            steps: K; the student's own by default.
            decoders: "exact", all K; "fast", without those that carry less than 1 % of the weight
                (``OneWaySchedule.fast``): three for the four of Stable Diffusion's students.
            guidance_scale: classifier-free guidance against ``negative_prompt``; 1 is without, as
                students are trained.
            prompt_embeds: (P, N, D) instead of ``prompt``.
            latents: (images, C, height / factor, width / factor), the noise, instead of ``seed``.
            batch_size: images at a time.
            chunk: timesteps per decoder call (all by default). Both are halved where memory runs
                out.
            draft: decode with the tiny decoder of ``load_draft``: coarser, in far less time.
            output_type: "pil", "pt", "np" or "latent" (the z_0 of Eq. 11).
            callback: called with (images done, images in all) after every batch.

        Returns:
            ``TiueOutput``, or (images, seeds) without ``return_dict``.

        Raises:
            ValueError: what is wrong with an argument, and what to give, in one line.
        """
        one_of("output_type", output_type, OUTPUT_TYPES)
        count = whole("count", count, 1)
        batch_size = whole("batch_size", batch_size, 1)
        chunk = None if chunk is None else whole("chunk", chunk, 1)
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
            raise ValueError(f"guidance_scale is {guidance_scale!r}: give a number, 1 is without")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if prompt_embeds is not None and prompt_embeds.ndim != 3:
            shape = tuple(prompt_embeds.shape)
            raise ValueError(f"prompt_embeds have shape {shape}: give (prompts, tokens, width)")
        schedule = self.schedule(steps, decoders)
        texts = None if prompt is None else texts_of("prompt", prompt)
        prompts = len(prompt_embeds) if texts is None else len(texts)  # type: ignore[arg-type]
        total = prompts * count
        shape = self._latent_shape(width, height, latents, total)
        seeds = seeds_of(seed, total) if latents is None else []
        self._remarks.of(self, texts or [], shape[2], shape[1])
        if draft and self.draft_vae is None:
            self.load_draft()
        if latents is not None and seed is not None:
            raise ValueError("seed and latents both give the noise: leave one of them out")
        guided = guidance_scale != 1
        negative = texts_of("negative_prompt", negative_prompt or "")
        if len(negative) not in (1, prompts):
            raise ValueError(f"{len(negative)} negative prompts for {prompts} prompts: give one")

        device, unet = self._execution_device, self.split_unet
        try:
            if texts is not None:
                prompt_embeds = self.encode_prompt(texts, batch_size, device)
            assert prompt_embeds is not None
            against = self.encode_prompt(negative, batch_size, device) if guided else None
            if against is not None:
                check_alike(prompt_embeds, against)
                against = against.expand(prompts, -1, -1)

            def paint(images: range, chunk: int) -> Any:
                rows = [image // count for image in images]
                noise = (
                    draw_noise(seeds[images.start : images.stop], shape)
                    if latents is None
                    else latents[images.start : images.stop]
                ).to(device)
                context = prompt_embeds[rows].to(device)
                if against is not None:
                    context = torch.cat([against[rows].to(device), context])
                    noise = torch.cat([noise, noise])
                with self._once():
                    z = one_pass(unet, schedule, noise, context, chunk=chunk).latents
                    z = z if against is None else guide(z, guidance_scale)
                    return self._decode_latents(z, output_type, draft)

            batches = []
            for images, batch in in_batches(total, batch_size, chunk or len(schedule), paint):
                batches.append(batch)
                if callback is not None:
                    callback(images.stop, total)
        finally:
            self.maybe_free_model_hooks()

        out = _joined(batches)
        return TiueOutput(images=out, seeds=seeds) if return_dict else (out, seeds)

    def encode_prompt(
        self, prompts: Sequence[str], batch_size: int = 8, device: torch.device | None = None
    ) -> Tensor:
        """Texts to (len(prompts), N, D), warning of words that the text encoder cannot take.

        ``device``: where the models run, if that is known already.
        """
        check_precision(self._text_encoders())
        limit = token_limit(self.tokenizer, self.text_encoder)
        # We name the words that do not fit; the tokenizer's own remark would only confuse.
        remark = "sequence-length-is-longer-than-the-specified-maximum"
        self.tokenizer.deprecation_warnings[remark] = True
        tokenizers = self._tokenizers()
        words = [[self.maybe_convert_prompt(text, one) for text in prompts] for one in tokenizers]
        texts = words[0]
        for text in dict.fromkeys(texts):
            warn_of_dropped_words(self.tokenizer, text, limit)

        tokens = [tokenize(*given, limit) for given in zip(tokenizers, words, strict=True)]
        pairs = [(one.input_ids, one.attention_mask) for one in tokens]
        rows = [zip(*pair, strict=True) for pair in pairs]
        told = zip(
            *([tuple(x.numpy().tobytes() for x in one) for one in each] for each in rows),
            strict=True,
        )
        keys = [*zip(texts, told, strict=True)]
        row_of = {key: row for row, key in enumerate(keys)}
        device = device or self._execution_device

        def encode(keys: list[tuple]) -> Tensor:
            embeds = []
            for first in range(0, len(keys), batch_size):
                rows = [row_of[key] for key in keys[first : first + batch_size]]
                given = [tuple(x[rows].to(device) for x in pair) for pair in pairs]
                embeds.append(self._encode_texts([texts[row] for row in rows], given))
            return torch.cat(embeds)

        return self._embeddings(keys, encode, self._text_encoders(), device)

    def _encode_texts(self, texts: list[str], tokens: list[tuple[Tensor, ...]]) -> Tensor:
        """Texts and what each tokenizer makes of them, ids and mask (B, N), to (B, N, D)."""
        ((ids, mask),) = tokens
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            return self.text_encoder(ids, attention_mask=mask)[0]
        return self._embed(ids, lambda: self.text_encoder(ids, attention_mask=None)[0])

    def _embed(self, ids: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """What ``plain`` answers of the first tokenizer's ids, or an engine in its place."""
        if self._optimized is None:
            return plain()
        return self._optimized.embed(self._text_encoders(), ids, plain)

    def _latent_shape(self, *asked: Any) -> tuple[int, int, int]:
        return latent_shape(self, *asked)

    def _once(self) -> AbstractContextManager[None]:
        """Within, the time of one pass, an engine reads every model's weights once."""
        return nullcontext() if self._optimized is None else self._optimized.once()

    def _decode_latents(self, latents: Tensor, output_type: str, draft: bool) -> Any:
        """z_0 (B, C, h, w) to images of ``output_type``."""
        if output_type == "latent":
            check_picture(self, latents)
            return latents
        vae = self.draft_vae if draft else self.vae
        run = self._optimized
        images = decode(vae, latents) if run is None else run.image(vae, latents, decode)
        check_picture(self, latents, images)
        images = unit(images)
        if output_type == "pt":
            return images
        pixels = self.image_processor.pt_to_numpy(images)
        return pixels if output_type == "np" else self.image_processor.numpy_to_pil(pixels)


def _joined(batches: list[Any]) -> Any:
    """Batches of images as one."""
    if isinstance(batches[0], Tensor):
        return torch.cat(batches)
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return [image for batch in batches for image in batch]
