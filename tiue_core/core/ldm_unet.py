"""The two halves of a UNet in Stable Diffusion's original layout, whoever's class it is.

ComfyUI and the WebUI family both run the UNet of the latent-diffusion code: ``input_blocks``,
``middle_block``, ``output_blocks``, ``out``, ``time_embed``, and a dictionary of
``transformer_options`` for whatever hangs on it. ``LdmUNet`` walks them as their own forward does,
once down and K times up, and imports neither host: a subclass says how its host runs a block.

The same two calls as ``SplitUNet`` has for diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .memory import out_of_memory
from .unet import Features

Options = dict[str, Any]


class LdmUNet:
    """An encoder that runs once and a decoder for K timesteps, made of a host's own blocks."""

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
        transformer_options: Options,
    ) -> Features:
        """Run time embedding, input blocks and middle block once.

        Args:
            noise: (B, C, H, W), in the model's dtype.
            timestep: one for all images.
            context: (B, N, D).
            y: (B, A), the vector of a class-conditional model.
            control: a ControlNet's residuals; the skips take theirs here, for all decoders.
            transformer_options: as the host hands them to a diffusion model; written to.
        """
        options = transformer_options
        patches = options.get("patches", {})
        options["original_shape"] = list(noise.shape)
        options["transformer_index"] = 0
        emb = self._embed(torch.full((len(noise),), float(timestep)), y, noise, options)

        h, skips = noise, []
        for i, block in enumerate(self.unet.input_blocks):
            options["block"] = ("input", i)
            h = self._step(block, h, emb, context, options, control)
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)

        options["block"] = ("middle", 0)
        h = self._step(self.unet.middle_block, h, emb, context, options, control)
        for i in reversed(range(len(skips))):  # residuals are stacked in the decoder's order
            skips[i] = self._controlled(skips[i], control, "output")
        return Features(mid=h, skips=tuple(skips), size=(noise.shape[-2], noise.shape[-1]))

    def decode(
        self,
        features: Features,
        timesteps: Tensor,
        context: Tensor,
        *,
        y: Tensor | None = None,
        transformer_options: Options,
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
            self._check_interrupt()
            times = timesteps[first : first + chunk]
            try:
                part = self._decode(features, times, context, y, transformer_options)
            except Exception as error:
                if chunk == 1 or not out_of_memory(error):
                    raise
                part = None  # retried outside, where the traceback no longer holds the tensors
            if part is None:
                self._free_memory()
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
        transformer_options: Options,
    ) -> Tensor:
        B, n = len(features.mid), len(timesteps)
        options = {
            **transformer_options,
            **self._repeated(transformer_options, B, n),
            "original_shape": [n * B, *transformer_options["original_shape"][1:]],
            "transformer_index": self._transformers_in_encoder,
        }

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
        return self._out(h.type(features.mid.dtype), options).unflatten(0, (n, B))

    def _output_block(
        self,
        block: Any,
        h: Tensor,
        skip: Tensor,
        emb: Tensor,
        context: Tensor,
        options: Options,
        size: Any,
    ) -> Tensor:
        """One output block: h (n * B, C, H, W), skip (B, S, H, W) to (n * B, C', H', W')."""
        skip = skip.repeat(len(h) // len(skip), 1, 1, 1)  # one level at a time, to hold little
        for patch in options.get("patches", {}).get("output_block_patch", ()):
            h, skip = patch(h, skip, options)
        return self._step(block, torch.cat([h, skip], 1), emb, context, options, size=size)

    def _step(
        self,
        block: Any,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        options: Options,
        control: dict[str, list] | None = None,
        size: Any = None,
    ) -> Tensor:
        """A block, and what a ControlNet adds to it."""
        if block is not None:  # some UNets have no middle block
            h = self._block(block, h, emb, context, options, size)
        return self._controlled(h, control, options["block"][0])

    def _embed(self, timesteps: Tensor, y: Tensor | None, like: Tensor, options: Options) -> Tensor:
        """Time embedding (len(timesteps), D_t) in ``like``'s dtype and on its device."""
        waves = self._waves(timesteps.to(like.device))  # float32
        emb = self._patched(self.unet.time_embed(waves.to(like.dtype)), options)
        return emb if self.unet.num_classes is None else emb + self.unet.label_emb(y)

    @property
    def _transformers_in_encoder(self) -> int:
        """Where the host's running ``transformer_index`` stands when the decoder begins."""
        blocks = [*self.unet.input_blocks, *filter(None, [self.unet.middle_block])]
        return sum(hasattr(layer, "transformer_blocks") for block in blocks for layer in block)

    # --- what a host does in its own way ---------------------------------------------------

    def _block(
        self, block: Any, h: Tensor, emb: Tensor, context: Tensor, options: Options, size: Any
    ) -> Tensor:
        """Run one block, its up-sampler to ``size``'s height and width if given."""
        raise NotImplementedError

    def _controlled(self, h: Tensor, control: dict[str, list] | None, part: str) -> Tensor:
        """Add a ControlNet's next residual for "input", "middle" or "output", if there is one."""
        raise NotImplementedError

    def _waves(self, timesteps: Tensor) -> Tensor:
        """Sinusoidal embedding of timesteps (n,): (n, model_channels) float32."""
        raise NotImplementedError

    def _patched(self, emb: Tensor, options: Options) -> Tensor:
        """What the host lets hang on the time embedding."""
        return emb

    def _out(self, h: Tensor, options: Options) -> Tensor:
        """The output layers."""
        return self.unet.out(h)

    def _repeated(self, options: Options, B: int, n: int) -> Options:
        """The entries of ``options`` that are per row, for n timesteps of B rows each."""
        per_part = ("cond_or_uncond", "uuids")
        return {name: options[name] * n for name in per_part if name in options}

    def _check_interrupt(self) -> None:
        """Raise the host's exception if the user has asked to stop."""

    def _free_memory(self) -> None:
        """Give back what the host's allocator has cached."""
