"""``SharedUNet``: a ``SplitUNet`` whose K decoders share what they have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..core.packed import ADDED, PackedUNet, pooled_width, unpack
from ..core.unet import HELPERS, Features, SplitUNet
from ..core.unet_call import unet_call_context
from .decoder import PARTS, Decoder
from .exact import NotUnderstoodError
from .layers import is_patched, state_of
from .measure import Times, not_worth_it, times
from .parts import understood
from .snapshot import Snapshot


class SharedUNet(SplitUNet):
    """The same two halves, the same predictions; the decoder without repeated work.

    Weights may change and LoRAs come and go between calls: what is derived from them (halves of
    convolutions, 2x2 kernels, time embeddings) is then derived again. With gradients, with
    conditions other than a prompt and SDXL's, or offloaded, the plain path runs, and says so once.

    Args:
        unet: a diffusers ``UNet2DConditionModel``.
        parts: the savings to use; all of ``PARTS`` by default.
        prepare: what is done to each new decoder, such as packing or compiling it.
        run: what calls the two halves, as ``run(function, *tensors)``, such as CUDA graphs.
    """

    def __init__(
        self,
        unet: Any,
        parts: Collection[str] = PARTS,
        prepare: Callable[[Decoder], None] | None = None,
        run: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(unet)
        self.parts, self.prepare = tuple(parts), prepare
        self.run: Callable[..., Any] = run or directly
        self.without: set[str] = set()
        self._decoder: Decoder | None = None
        self._made_of: tuple = ()
        self._seen: Snapshot | None = None  # of the UNet, when the decoder was made
        self._tables: dict[tuple, Any] = {}
        self._said: set[str] = set()

    def encode(
        self, noise: Tensor, timestep: Tensor | int, prompt_embeds: Tensor, **conditions: Any
    ) -> Features:
        """As ``SplitUNet.encode``."""
        one = not isinstance(timestep, Tensor) or timestep.ndim == 0
        if not one or self._unfit(noise, prompt_embeds, conditions) is not None:
            return super().encode(noise, timestep, prompt_embeds, **conditions)
        added = conditions.get("added_cond_kwargs")
        with unet_call_context(self.unet, conditions, noise.shape[-2:]):
            try:
                self.decoder()  # clears the tables if they are out of date
            except NotUnderstoodError:
                return super().encode(noise, timestep, prompt_embeds, **conditions)
            h = noise.to(self.unet.dtype)
            temb = self._embedding((int(timestep),), h, added).expand(len(h), 1, -1)[:, 0]
            mid, *skips = self.run(self._halfway, h, temb, prompt_embeds.to(h.dtype))
        return Features(mid=mid, skips=tuple(skips), size=(noise.shape[-2], noise.shape[-1]))

    def _halfway(self, h: Tensor, temb: Tensor, prompt_embeds: Tensor) -> list[Tensor]:
        mid, skips = self._down(h, temb, {"encoder_hidden_states": prompt_embeds}, [])
        return [mid, *skips]

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
        reason = self._unfit(features.mid, prompt_embeds, conditions)
        if reason is None:
            try:
                with unet_call_context(self.unet, conditions, features.size):
                    added = conditions.get("added_cond_kwargs")
                    return self._thrifty(features, timesteps, prompt_embeds, chunk, weights, added)
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
        same = self._seen is not None and self._seen.same()
        if not same:
            self._look_for_patches()
        if self._decoder is None or not same or self._state(self._decoder) != self._made_of:
            self._tables.clear()
            self._decoder = None
            decoder = Decoder(self.unet, self.parts, self.without, self._say)
            if self.prepare is not None:
                self.prepare(decoder)
            self._decoder, self._made_of = decoder, self._state(decoder)
            self._seen = Snapshot(self.unet)
        return self._decoder

    def measure(
        self,
        features: Features,
        timesteps: Sequence[int],
        prompt_embeds: Tensor,
        repeats: int = 3,
        added_cond_kwargs: dict[str, Any] | None = None,
    ) -> Times:
        """Run every part both ways, and from now on without the savings that do not pay.

        Returns:
            Seconds with and without its saving, for every part.
        """
        temb = self._embedding(tuple(timesteps), features.mid, added_cond_kwargs)
        found = times(self.decoder(), features, temb, prompt_embeds, repeats)
        self.without |= not_worth_it(found)
        self._decoder = None
        return found

    def _look_for_patches(self) -> None:
        """What hangs on a module would see one image's timesteps side by side, or keys for all of
        them at once; a graph would leave it out."""
        for name in HELPERS:
            if name in vars(self.unet):
                raise NotUnderstoodError(f"a {name} that is not its library's")
        for module in self._inside():
            if is_patched(module):
                raise NotUnderstoodError(f"a hook on {type(module).__name__}")
            if isinstance(module, Attention) and not understood(module.processor):
                raise NotUnderstoodError(f"a {type(module.processor).__name__}")

    def _inside(self) -> Iterator[nn.Module]:
        return (module for module in self.unet.modules() if module is not self.unet)

    def _state(self, decoder: Decoder) -> tuple:
        return state_of([*decoder.all_watched(), *self.unet.time_embedding.modules()])

    def _thrifty(
        self,
        features: Features,
        timesteps: Tensor | Sequence[int],
        prompt_embeds: Tensor,
        chunk: int | None,
        weights: Tensor | None,
        added: dict[str, Any] | None,
    ) -> Tensor:
        decoder, K, mid = self.decoder(), len(timesteps), features.mid
        chunk = K if chunk is None else chunk
        steps = [int(t) for t in timesteps]
        context = prompt_embeds.to(mid.dtype)
        weights = None if weights is None else weights.to(mid.device)
        done = []
        for part in (slice(first, first + chunk) for first in range(0, K, chunk)):
            table = self._table(decoder, tuple(steps[part]), mid, added)
            some = None if weights is None else weights[part]
            done.append(self.run(decoder.forward, mid, features.skips, table, context, some))
        if len(done) == 1:
            return done[0]
        return torch.cat(done) if weights is None else torch.stack(done).sum(0)

    def _embedding(
        self, timesteps: tuple[int, ...], like: Tensor, added: dict[str, Any] | None = None
    ) -> Tensor:
        """(K, D), after the activation if the UNet has one; with SDXL's conditions, which are one
        image's own, (B, K, D)."""
        key, unet = ("embedding", timesteps, like.dtype, like.device), self.unet
        if key not in self._tables:
            times = torch.tensor(timesteps, device=like.device)
            self._tables[key] = unet.time_embedding(unet.time_proj(times).to(like.dtype))
        temb, act = self._tables[key], unet.time_embed_act
        if added is not None:
            temb = temb + unet.get_aug_embed(temb, None, added)[:, None]
        return temb if act is None else act(temb)

    def _table(
        self,
        decoder: Decoder,
        timesteps: tuple[int, ...],
        like: Tensor,
        added: dict[str, Any] | None,
    ) -> list[Tensor]:
        if added is not None:  # another prompt, another table
            return decoder.table(self._embedding(timesteps, like, added))
        key = ("table", timesteps, like.dtype, like.device)
        if key not in self._tables:
            self._tables[key] = decoder.table(self._embedding(timesteps, like))
        return self._tables[key]

    def _unfit(self, like: Tensor, prompt_embeds: Tensor, conditions: dict[str, Any]) -> str | None:
        """Why this call cannot be saved upon. ``like`` has one row per image."""
        attention = conditions.get("cross_attention_kwargs") or {}
        given = [name for name, value in conditions.items() if value is not None]
        given = [name for name in given if name != "cross_attention_kwargs"]
        given += [name for name in attention if name != "scale"]
        unet, config = self.unet, self.unet.config
        embeds = ["class_embed_type", "num_class_embeds"]
        if config.addition_embed_type == ADDED and "added_cond_kwargs" in given:
            given.remove("added_cond_kwargs")
        else:
            embeds.append("addition_embed_type")
        if given:
            return f"with {', '.join(given)}"
        if torch.is_grad_enabled():
            return "with gradients"
        if prompt_embeds.ndim != 3 or len(prompt_embeds) != len(like):
            return "with prompts of their own for each timestep"
        if any(config.get(name) for name in (*embeds, "encoder_hid_dim_type")):
            return "with added embeddings"
        if any(getattr(block, "b1", None) for block in unet.up_blocks):
            return "with FreeU"
        if hasattr(unet, "_hf_hook") or getattr(unet, "_diffusers_hook", None):
            return "offloaded"
        return None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=2)


class SharedPackedUNet(PackedUNet, SharedUNet):
    """The same for SDXL's UNet and a packed prompt."""

    def measure(
        self,
        features: Features,
        timesteps: Sequence[int],
        prompt_embeds: Tensor,
        repeats: int = 3,
        added_cond_kwargs: dict[str, Any] | None = None,
    ) -> Times:
        """As ``SharedUNet.measure``; the conditions are in the prompt."""
        embeds, added = unpack(self.unet, prompt_embeds, features.size, self.factor)
        return super().measure(features, timesteps, embeds, repeats, added)


def shared(unet: Any, factor: int, **options: Any) -> SharedUNet:
    """A ``SharedUNet`` for either kind of UNet; ``factor`` is pixels a latent."""
    if pooled_width(unet):
        return SharedPackedUNet(unet, factor, **options)
    return SharedUNet(unet, **options)


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """What runs a part where nothing is captured."""
    return function(*arguments)
