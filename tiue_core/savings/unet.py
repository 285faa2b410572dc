"""``ThriftyUNet``: a ``SplitUNet`` whose K decoders share what they have in common."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..unet import Features, SplitUNet, woken
from .decoder import PARTS, Decoder
from .layers import NotUnderstoodError, state_of


class ThriftyUNet(SplitUNet):
    """The same two halves, the same predictions; the decoder without repeated work.

    Weights may change and LoRAs come and go between calls: what is derived from them (halves of
    convolutions, 2x2 kernels, time embeddings) is then derived again. With gradients, with
    conditions other than a prompt, or offloaded, the plain path runs, and says so once.

    Args:
        unet: a diffusers ``UNet2DConditionModel``.
        parts: the savings to use; all of ``PARTS`` by default.
    """

    def __init__(self, unet: Any, parts: Collection[str] = PARTS) -> None:
        super().__init__(unet)
        self.parts = tuple(parts)
        self._decoder: Decoder | None = None
        self._made_of: tuple = ()
        self._tables: dict[tuple, list[Tensor]] = {}
        self._said: set[str] = set()

    def decode(
        self,
        features: Features,
        timesteps: Tensor | Sequence[int],
        prompt_embeds: Tensor,
        *,
        chunk: int | None = None,
        weights: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """As ``SplitUNet.decode``."""
        reason = self._unfit(features, prompt_embeds, conditions)
        if reason is None:
            try:
                with woken(self.unet, conditions):
                    decoder = self.decoder()
                    return self._thrifty(
                        decoder, features, timesteps, prompt_embeds, chunk, weights
                    )
            except NotUnderstoodError as error:
                reason = str(error)
        self._say(f"{reason}: the decoders run without savings")
        options: dict[str, Any] = {"chunk": chunk, "weights": weights, **conditions}
        return super().decode(features, timesteps, prompt_embeds, **options)

    def decoder(self) -> Decoder:
        """The decoder, made anew where anything it was made of has changed.

        Raises:
            NotUnderstoodError: why it cannot be made.
        """
        embedding = self.unet.time_embedding
        if self._decoder is not None:
            state = (*self._decoder.state(), *map(state_of, embedding.modules()))
        if self._decoder is None or state != self._made_of:
            self._tables.clear()
            self._decoder = Decoder(self.unet, self.parts, self._say)
            self._made_of = (*self._decoder.state(), *map(state_of, embedding.modules()))
        return self._decoder

    def _thrifty(
        self,
        decoder: Decoder,
        features: Features,
        timesteps: Tensor | Sequence[int],
        prompt_embeds: Tensor,
        chunk: int | None,
        weights: Tensor | None,
    ) -> Tensor:
        K = len(timesteps)
        chunk = K if chunk is None else chunk
        times = torch.as_tensor(timesteps).tolist()
        context = prompt_embeds.to(features.mid.dtype)
        weights = None if weights is None else weights.to(features.mid.device)
        parts = []
        for part in (slice(first, first + chunk) for first in range(0, K, chunk)):
            table = self._table(decoder, tuple(times[part]), features.mid)
            some = None if weights is None else weights[part]
            parts.append(decoder(features.mid, features.skips, table, context, some))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if weights is None else torch.stack(parts).sum(0)

    def _table(self, decoder: Decoder, timesteps: tuple, like: Tensor) -> list[Tensor]:
        key = (timesteps, like.dtype, like.device)
        if key not in self._tables:
            unet = self.unet
            times = torch.tensor(timesteps, device=like.device)
            temb = unet.time_embedding(unet.time_proj(times).to(like.dtype))
            temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)
            self._tables[key] = decoder.table(temb)
        return self._tables[key]

    def _unfit(
        self, features: Features, prompt_embeds: Tensor, conditions: dict[str, Any]
    ) -> str | None:
        """Why this call cannot be saved upon."""
        attention = conditions.get("cross_attention_kwargs") or {}
        given = [name for name, value in conditions.items() if value is not None]
        given = [name for name in given if name != "cross_attention_kwargs"]
        given += [name for name in attention if name != "scale"]
        config = self.unet.config
        if given:
            return f"with {', '.join(given)}"
        if torch.is_grad_enabled():
            return "with gradients"
        if prompt_embeds.ndim != 3 or len(prompt_embeds) != len(features.mid):
            return "with prompts of their own for each timestep"
        if any(config.get(name) for name in ("class_embed_type", "addition_embed_type")):
            return "with class or added embeddings"
        if config.get("encoder_hid_dim_type") or config.get("num_class_embeds"):
            return "with class or added embeddings"
        if any(getattr(block, "b1", None) for block in self.unet.up_blocks):
            return "with FreeU"
        if hasattr(self.unet, "_hf_hook") or getattr(self.unet, "_diffusers_hook", None):
            return "offloaded"
        return None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=2)
