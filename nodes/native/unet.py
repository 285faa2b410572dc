"""ComfyUI's own ``UNetModel`` as an encoder that runs once and a decoder for K timesteps.

The same two calls as ``tiue_core.core.unet.SplitUNet`` has for diffusers. ComfyUI's submodules do
the work, block by block and in its own order, with its ``transformer_options`` around them: LoRA
patches, attention overrides, ControlNet, FreeU, offloading and quantized weights keep working.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    SpatialTransformer,
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from torch import Tensor

from ...tiue_core.core.unet import Features


class ComfyUNet:
    """The two halves of a ``UNetModel``; what hangs on it arrives in ``transformer_options``."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def encode(
        self,
        noise: Tensor,
        timestep: Tensor | int,
        context: Tensor,
        *,
        y: Tensor | None = None,
        control: dict[str, list] | None = None,
        transformer_options: dict[str, Any],
    ) -> Features:
        """Run time embedding, input blocks and middle block once.

        Args:
            noise: (B, C, H, W), in the model's dtype.
            timestep: one for all images.
            context: (B, N, D).
            y: (B, A), the vector of a class-conditional model.
            control: ComfyUI's ControlNet residuals; the skips take theirs here, for all decoders.
            transformer_options: as ComfyUI hands them to a diffusion model; written to.
        """
        options = transformer_options
        patches = options.get("patches", {})
        options["original_shape"] = list(noise.shape)
        options["transformer_index"] = 0
        emb = self._embed(torch.full((len(noise),), float(timestep)), y, noise, options)

        h, skips = noise, []
        for i, block in enumerate(self.unet.input_blocks):
            options["block"] = ("input", i)
            h = forward_timestep_embed(block, h, emb, context, options)
            h = apply_control(h, control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)

        options["block"] = ("middle", 0)
        if self.unet.middle_block is not None:
            h = forward_timestep_embed(self.unet.middle_block, h, emb, context, options)
        h = apply_control(h, control, "middle")
        for i in reversed(range(len(skips))):  # residuals are stacked in the decoder's order
            skips[i] = apply_control(skips[i], control, "output")
        return Features(mid=h, skips=tuple(skips), size=(noise.shape[-2], noise.shape[-1]))

    def decode(
        self,
        features: Features,
        timesteps: Tensor,
        context: Tensor,
        *,
        y: Tensor | None = None,
        transformer_options: dict[str, Any],
        chunk: int | None = None,
    ) -> Tensor:
        """Run output blocks and output layers for K timesteps, as one batch if memory allows.

        Where memory runs out, half as many timesteps are decoded at once, down to one.

        Args:
            features: what ``encode`` returned; left as it is.
            timesteps: (K,).
            context: (B, N, D), for all timesteps.
            y: (B, A).
            transformer_options: as for ``encode``; left as they are.
            chunk: timesteps decoded at once, all by default.

        Returns:
            (K, B, C, H, W)
        """
        K, first = len(timesteps), 0
        chunk = min(chunk or K, K)
        predictions = []
        while first < K:
            model_management.throw_exception_if_processing_interrupted()
            times = timesteps[first : first + chunk]
            try:
                part = self._decode(features, times, context, y, transformer_options)
            except Exception as error:
                if chunk == 1 or not _out_of_memory(error):
                    raise
                part = None  # retried outside, where the traceback no longer holds the tensors
            if part is None:
                model_management.soft_empty_cache()
                chunk = (chunk + 1) // 2
            else:
                predictions.append(part)
                first += chunk
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def _decode(
        self,
        features: Features,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        transformer_options: dict[str, Any],
    ) -> Tensor:
        B, n = len(features.mid), len(timesteps)
        options = {
            **transformer_options,
            "original_shape": [n * B, *transformer_options["original_shape"][1:]],
            "transformer_index": self._transformers_in_encoder,
        }
        for per_image in ("cond_or_uncond", "uuids"):
            if per_image in options:
                options[per_image] = options[per_image] * n

        # repeat() copies where expand() would alias: FreeU scales the mid feature in place.
        h = features.mid.repeat(n, 1, 1, 1)
        y = None if y is None else y.repeat(n, 1)
        emb = self._embed(timesteps.repeat_interleave(B), y, h, options)
        context = context.repeat(n, 1, 1)

        skips = list(features.skips)
        for i, block in enumerate(self.unet.output_blocks):
            options["block"] = ("output", i)
            skip = skips.pop()
            size = skips[-1].shape if skips else None  # where halving rounded, this one knows
            h = self._output_block(block, h, skip, emb, context, options, size)
        return self.unet.out(h.type(features.mid.dtype)).unflatten(0, (n, B))

    def _output_block(
        self,
        block: Any,
        h: Tensor,
        skip: Tensor,
        emb: Tensor,
        context: Tensor,
        options: dict[str, Any],
        size: Any,
    ) -> Tensor:
        """One output block: h (n * B, C, H, W), skip (B, S, H, W) to (n * B, C', H', W')."""
        skip = skip.repeat(len(h) // len(skip), 1, 1, 1)  # one level at a time, to hold little
        for patch in options.get("patches", {}).get("output_block_patch", ()):
            h, skip = patch(h, skip, options)
        return forward_timestep_embed(block, torch.cat([h, skip], 1), emb, context, options, size)

    def _embed(
        self, timesteps: Tensor, y: Tensor | None, like: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """Time embedding (len(timesteps), D_t) in ``like``'s dtype and on its device."""
        unet = self.unet
        waves = timestep_embedding(timesteps.to(like.device), unet.model_channels)
        emb = unet.time_embed(waves.to(like.dtype))
        for patch in options.get("patches", {}).get("emb_patch", ()):
            emb = patch(emb, unet.model_channels, options)
        return emb if unet.num_classes is None else emb + unet.label_emb(y)

    @property
    def _transformers_in_encoder(self) -> int:
        """Where ComfyUI's running ``transformer_index`` stands when the decoder begins."""
        blocks = [*self.unet.input_blocks, *filter(None, [self.unet.middle_block])]
        return sum(isinstance(layer, SpatialTransformer) for block in blocks for layer in block)


def _out_of_memory(error: Exception) -> bool:
    """The accelerator's own exception, or what the CPU allocator raises."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
