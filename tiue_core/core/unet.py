"""The two halves of a UNet: an encoder that runs once, a decoder that runs for K timesteps at once.

    encoder   time embedding, conv_in, down blocks, mid block    (B, C, H, W) -> features
    decoder   up blocks, conv_norm_out, conv_act, conv_out       features     -> (K, B, C, H, W)

The decoder sees the K timesteps as one batch, timestep-major (t_0 of all B images, then t_1 ...):
the same mid and skip features K times over, with K different time embeddings. This is the whole of
the paper's sharing; the modules are the UNet's own, called in the UNet's own order, so whatever
hangs on them (LoRA, attention processors, gradient checkpointing, FreeU) keeps working.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .schedule import weighted_sum
from .unet_call import unet_call_context

_PARTS = ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out")
HELPERS = ("get_time_embed", "get_class_embed", "get_aug_embed", "process_encoder_hidden_states")


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder hands to every decoder. Never written to: each decoder gets a copy."""

    mid: Tensor  # (B, C_mid, h, w)
    skips: tuple[Tensor, ...]  # (B, C_i, h_i, w_i), from conv_in down
    size: tuple[int, int]  # (H, W) of the latent


class SplitUNet(nn.Module):
    """A diffusers ``UNet2DConditionModel`` as an encoder and a decoder that share its weights.

    Conditions are the keyword arguments of the UNet's own forward: ``added_cond_kwargs``,
    ``class_labels``, ``timestep_cond``, ``attention_mask``, ``encoder_attention_mask``,
    ``cross_attention_kwargs`` (its ``scale`` is the LoRA strength). Give both halves the same.
    Residuals of a ControlNet or T2I-Adapter belong to the encoder, which all K decoders share.
    """

    unet: Any

    def __init__(self, unet: Any) -> None:
        super().__init__()
        missing = [name for name in _PARTS + HELPERS if not hasattr(unet, name)]
        if missing:
            raise ValueError(
                f"{type(unet).__name__} cannot be split into encoder and decoder, it has no "
                f"{', '.join(missing)}: give a UNet2DConditionModel"
            )
        if unet.config.addition_embed_type == "image_hint":
            raise ValueError("a UNet that concatenates an image hint cannot be split")
        self.unet = unet

    def forward(
        self,
        noise: Tensor,
        timesteps: Tensor | Sequence[int],
        prompt_embeds: Tensor,
        *,
        chunk: int | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Encode at the first timestep, decode at all: (B, C, H, W) -> (K, B, C, H, W).

        One call for what wraps a module (DDP, torch.compile, export).
        """
        features = self.encode(noise, timesteps[0], prompt_embeds, **conditions)
        shared = {name: value for name, value in conditions.items() if name not in _RESIDUALS}
        return self.decode(features, timesteps, prompt_embeds, chunk=chunk, **shared)

    def encode(
        self,
        noise: Tensor,
        timestep: Tensor | int,
        prompt_embeds: Tensor,
        *,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        **conditions: Any,
    ) -> Features:
        """Run time embedding, conv_in, down blocks and mid block once.

        Args:
            noise: (B, C, H, W), any H and W; brought to the UNet's dtype.
            timestep: one for all images, or (B,).
            prompt_embeds: (B, N, D).
            down_block_additional_residuals: a ControlNet's, one per skip feature.
            mid_block_additional_residual: a ControlNet's, for the mid feature.
            down_intrablock_additional_residuals: a T2I-Adapter's, one per down block.
        """
        unet = self.unet
        with unet_call_context(unet, conditions, noise.shape[-2:]) as conditions:
            h = noise.to(unet.dtype)
            temb, context = self._context(h, timestep, prompt_embeds, **conditions)
            adapter = list(down_intrablock_additional_residuals or ())

            h, skips = self._down(h, temb, context, adapter)
            if down_block_additional_residuals is not None:
                skips = _added(skips, down_block_additional_residuals)
            if mid_block_additional_residual is not None:
                h = h + mid_block_additional_residual
        return Features(mid=h, skips=tuple(skips), size=(noise.shape[-2], noise.shape[-1]))

    def _down(
        self, h: Tensor, temb: Tensor, context: dict[str, Any], adapter: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """conv_in, down blocks and mid block: mid and skip features."""
        unet = self.unet
        h = unet.conv_in(2 * h - 1 if unet.config.center_input_sample else h)
        skips = [h]
        for block in unet.down_blocks:
            if _attends(block):
                extra = {"additional_residuals": adapter.pop(0)} if adapter else {}
                h, outputs = block(hidden_states=h, temb=temb, **context, **extra)
            else:
                h, outputs = block(hidden_states=h, temb=temb)
                if adapter:  # reaches the last skip feature too, where that is h itself
                    before, h = h, h + adapter.pop(0)
                    outputs = [h if output is before else output for output in outputs]
            skips.extend(outputs)

        if unet.mid_block is not None:
            h = unet.mid_block(h, temb, **(context if _attends(unet.mid_block) else {}))
            if adapter and adapter[0].shape == h.shape:  # T2I-Adapter XL reaches the middle
                h = h + adapter.pop(0)
        return h, skips

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
        """Run up blocks, norm and conv_out for K timesteps as one batch, timestep-major.

        Args:
            features: what ``encode`` returned; left as it is.
            timesteps: (K,).
            prompt_embeds: (B, N, D) for all timesteps, or (K * B, N, D) or (K, B, N, D), one each.
            chunk: timesteps per decoder call, all by default; fewer take less memory.
            weights: (K,); the answer is then the predictions' weighted sum.
            conditions: batch-first tensors of B, or of K * B, rows.

        Returns:
            (K, B, C, H, W); with ``weights`` (B, C, H, W), in float32 at least.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}: give how many timesteps to decode at once, from 1")
        B, K = len(features.mid), len(timesteps)
        times = torch.as_tensor(timesteps, device=features.mid.device)
        if prompt_embeds.ndim == 4:
            prompt_embeds = prompt_embeds.flatten(0, 1)
        chunk = chunk or K
        with unet_call_context(self.unet, conditions, features.size) as conditions:
            predictions = [
                self._decode(
                    features,
                    times[first : first + chunk],
                    *_rows((prompt_embeds, conditions), B, K, slice(first, first + chunk)),
                )
                for first in range(0, K, chunk)
            ]
        joined = predictions[0] if len(predictions) == 1 else torch.cat(predictions)
        return joined if weights is None else weighted_sum(joined, weights)

    def _decode(
        self, features: Features, times: Tensor, prompt_embeds: Tensor, conditions: dict[str, Any]
    ) -> Tensor:
        unet, K = self.unet, len(times)
        # repeat() copies where expand() would alias: FreeU scales half of the channels in place.
        h = features.mid.repeat(K, 1, 1, 1)
        times = times.repeat_interleave(len(features.mid))  # timestep-major
        temb, context = self._context(h, times, prompt_embeds, **conditions)

        # Where halving rounded, doubling cannot know the size: the next skip feature tells it.
        odd = any(side % 2**unet.num_upsamplers for side in features.size)
        skips = features.skips
        for block in unet.up_blocks:
            n = len(block.resnets)
            own, skips = tuple(s.repeat(K, 1, 1, 1) for s in skips[-n:]), skips[:-n]
            h = block(
                hidden_states=h,
                temb=temb,
                res_hidden_states_tuple=own,
                upsample_size=skips[-1].shape[2:] if odd and skips else None,
                **(context if _attends(block) else {}),
            )
        if unet.conv_norm_out is not None:
            h = unet.conv_act(unet.conv_norm_out(h))
        return unet.conv_out(h).unflatten(0, (K, -1))

    def _context(
        self,
        like: Tensor,
        timestep: Tensor | int,
        prompt_embeds: Tensor,
        *,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Time embedding (len(like), D_t), and the arguments of every block that attends.

        ``like`` gives batch size, dtype and device.
        """
        unet, added = self.unet, added_cond_kwargs or {}
        prompt_embeds = prompt_embeds.to(like.dtype)

        temb = unet.time_embedding(unet.get_time_embed(like, timestep), timestep_cond)
        label = unet.get_class_embed(like, class_labels)
        if label is not None:
            concat = unet.config.class_embeddings_concat
            temb = torch.cat([temb, label], dim=-1) if concat else temb + label
        extra = unet.get_aug_embed(temb, prompt_embeds, added)
        temb = temb if extra is None else temb + extra
        temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)

        if cross_attention_kwargs is not None and "gligen" in cross_attention_kwargs:
            objs = unet.position_net(**cross_attention_kwargs["gligen"])
            cross_attention_kwargs = {**cross_attention_kwargs, "gligen": {"objs": objs}}
        return temb, {
            "encoder_hidden_states": unet.process_encoder_hidden_states(prompt_embeds, added),
            "attention_mask": _bias(attention_mask, like.dtype),
            "encoder_attention_mask": _bias(encoder_attention_mask, like.dtype),
            "cross_attention_kwargs": cross_attention_kwargs,
        }


_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


def _attends(block: nn.Module) -> bool:
    return getattr(block, "has_cross_attention", False)


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, N), one = keep, as what is added to attention scores: (B, 1, N)."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _added(skips: list[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    if len(residuals) != len(skips):
        raise ValueError(
            f"{len(residuals)} ControlNet residuals for {len(skips)} skip features: is the "
            "ControlNet made for another UNet?"
        )
    return [skip + residual for skip, residual in zip(skips, residuals, strict=True)]


def _rows(value: Any, B: int, K: int, part: slice) -> Any:
    """The rows of ``value`` that belong to some of the K timesteps, timestep-major.

    Tensors of B rows are the same at every timestep; tensors of K * B rows have their own for each.
    Containers are walked, anything else passes.
    """
    if isinstance(value, Tensor) and value.ndim:
        n = len(range(K)[part])
        if len(value) == B:
            return value.repeat(n, *[1] * (value.ndim - 1))
        if len(value) == K * B:
            return value.unflatten(0, (K, B))[part].flatten(0, 1)
    elif isinstance(value, dict):
        return {key: _rows(item, B, K, part) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        return type(value)(_rows(item, B, K, part) for item in value)
    return value
