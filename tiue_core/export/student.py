"""A student as ``nn.Module``s that can be traced: tensors in, tensors out, nothing to decide.

    text_encoder  input_ids (B, N)                       -> prompt_embeds (B, N, D)
    encoder       noise (B, C, h, w), prompt_embeds      -> mid, skips
    decoder       mid, skips, noise, prompt_embeds       -> latents (B, C, h, w), K at once, summed
    vae           latents                                -> image (B, 3, H, W) in [0, 1]

``Student`` is the four in a row: what ``TiuePipeline`` computes without guidance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.packed import joined, pooled_width, split, unpack
from ..core.schedule import OneWaySchedule
from ..core.unet import Features
from ..shared import shared
from ..shared.exact import doubled
from ..shared.layers import NotUnderstoodError
from ..shared.parts import Upsampler

SAVINGS = ("skips", "attention", "output")
"""The exact savings that a graph takes over. The upsamplers' is another one: see ``Doubled``."""


class TextEncoder(nn.Module):
    """Token ids to prompt embeddings."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.text_encoder = pipe.text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids)[0]


class TextEncoders(nn.Module):
    """SDXL's two: token ids of the first tokenizer to a packed prompt (``core.packed``). The
    second's are the same up to the end of the prompt, and padded with another token."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.first, self.second = map(_with_states, (pipe.text_encoder, pipe.text_encoder_2))
        self.end, self.pad = pipe.tokenizer.eos_token_id, pipe.tokenizer_2.pad_token_id
        self.ends_pad = pipe.tokenizer.pad_token_id == self.end
        self.zeros = bool(pipe.config["force_zeros_for_empty_prompt"])

    def forward(self, input_ids: Tensor) -> Tensor:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        ends = input_ids == self.end
        # Where the end pads as well, it is behind the last token that is none.
        last = (place * ~ends).amax(1) + 1 if self.ends_pad else (place * ends).amax(1)
        second = torch.where(place > last[:, None], self.pad, input_ids)
        blank = (last == 1) if self.zeros else torch.zeros_like(last, dtype=torch.bool)
        one, two = self.first(input_ids), self.second(second)
        first, last = (x.last_hidden_state.chunk(2, -1)[0] for x in (one, two))
        return joined(first, last, two.text_embeds, blank)


def _with_states(encoder: nn.Module) -> Any:
    """A text encoder whose states before its last layer come beside the last ones, twice as wide:
    transformers' own way to ask for them cannot be traced. The weights are shared."""
    twin: Any = _twin(encoder)
    model = getattr(twin, "text_model", twin)
    layers = model.encoder.layers
    layers[len(layers) - 1] = _Beside(layers[len(layers) - 1])
    model.final_layer_norm = _OfLast(model.final_layer_norm, kept=True)
    if hasattr(twin, "text_projection"):
        twin.text_projection = _OfLast(twin.text_projection, kept=False)
    return twin


def _twin(module: nn.Module) -> nn.Module:
    """The same module to be put together anew: its parameters, but a list of parts of its own."""
    twin = copy(module)
    twin._modules = {
        name: None if part is None else _twin(part) for name, part in module._modules.items()
    }
    return twin


class _Beside(nn.Module):
    """A layer that hands on what it was given beside its answer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor, *arguments: Any, **options: Any) -> Any:
        answer = self.layer(states, *arguments, **options)
        if isinstance(answer, tuple):  # transformers 4
            return (torch.cat([states, answer[0]], -1), *answer[1:])
        return torch.cat([states, answer], -1)


class _OfLast(nn.Module):
    """A layer of the answer alone; what came beside it is kept there, or dropped."""

    def __init__(self, layer: nn.Module, kept: bool) -> None:
        super().__init__()
        self.layer, self.kept = layer, kept

    def forward(self, both: Tensor) -> Tensor:
        states, answer = both.chunk(2, -1)
        return torch.cat([states, self.layer(answer)], -1) if self.kept else self.layer(answer)


def text_encoder(pipe: Any) -> nn.Module:
    """A pipeline's text encoder, or both."""
    return TextEncoders(pipe) if pooled_width(pipe.unet) else TextEncoder(pipe)


class Encoder(nn.Module):
    """The half of the UNet that runs once, at the first timestep."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule) -> None:
        super().__init__()
        self.unet = split(pipe.unet, pipe.vae_scale_factor)
        self.timestep = int(schedule.timesteps[0])

    def forward(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        features = self.unet.encode(noise, self.timestep, prompt_embeds)
        return features.mid, *features.skips


class Decoder(nn.Module):
    """K decoders and their combination (Eq. 11), with the exact savings where they can be had."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule) -> None:
        super().__init__()
        unet, self.factor = pipe.unet, pipe.vae_scale_factor
        self.plain, self.timesteps = split(unet, self.factor), schedule.timesteps.tolist()
        self.signal = schedule.signal
        self.weights: Tensor
        self.register_buffer("weights", schedule.weights.float())
        self.thrifty: Any = None
        try:
            self.thrifty = shared(unet, self.factor, parts=SAVINGS).decoder()
            for level in self.thrifty.levels:
                level.upsamplers = nn.ModuleList(map(_doubled, level.upsamplers))
        except NotUnderstoodError as error:
            warnings.warn(f"{error}: the decoders are exported without savings", stacklevel=2)
        self.packed = bool(pooled_width(unet))
        if self.thrifty is not None:
            temb = unet.time_embedding(unet.time_proj(schedule.timesteps).to(unet.dtype))
            if self.packed:  # what is added to it is one image's own
                table = [temb]
            else:
                temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)
                table = self.thrifty.table(temb)
            rows = (nn.Parameter(row.detach().clone(), requires_grad=False) for row in table)
            self.table = nn.ParameterList(rows)

    def forward(
        self, mid: Tensor, skips: Sequence[Tensor], noise: Tensor, prompt_embeds: Tensor
    ) -> Tensor:
        if self.thrifty is not None:
            context, table = prompt_embeds.to(mid.dtype), list(self.table)
            if self.packed:
                unet: Any = self.plain.unet
                context, added = unpack(unet, context, noise.shape[-2:], self.factor)
                temb = table[0] + unet.get_aug_embed(table[0], None, added)[:, None]
                temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)
                table = self.thrifty.table(temb)
            total = self.thrifty(mid, tuple(skips), table, context, self.weights)
        else:
            features = Features(mid, tuple(skips), (noise.shape[-2], noise.shape[-1]))
            total = self.plain.decode(features, self.timesteps, prompt_embeds, weights=self.weights)
        return self.signal * noise.float() + total


class Vae(nn.Module):
    """Latents to a picture in [0, 1]."""

    def __init__(self, pipe: Any, vae: Any) -> None:
        super().__init__()
        self.vae, self.decode = _for_engines(_twin(vae)), pipe.decode

    def forward(self, latents: Tensor) -> Tensor:
        return (self.decode(self.vae, latents).float() / 2 + 0.5).clamp(0, 1)


class _ByChannel(nn.Module):
    """A group norm whose groups are single channels by its other name: engines have a kernel for an
    instance norm, and reshape the features to and fro for a group norm."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class Doubled(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution as one transposed convolution, four ninths
    of the multiplications, for which engines have a kernel. Its weight is stored, so that nothing
    is derived when an engine opens the graph.

    Raises:
        NotUnderstoodError: the upsampler is not Stable Diffusion's.
    """

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.upsample = Upsampler(upsample).upsample
        self.kernel = nn.Parameter(doubled(self.upsample.conv.weight.detach().float()))

    def forward(self, h: Tensor, size: Any = None) -> Tensor:
        if size is not None and tuple(size) != (2 * h.shape[2], 2 * h.shape[3]):
            return self.upsample(h, size)
        return F.conv_transpose2d(h, self.kernel, self.upsample.conv.bias, stride=2, padding=1)


def _for_engines(module: nn.Module) -> nn.Module:
    """A twin with parts that engines have a better kernel for."""
    for name, part in module._modules.items():
        if isinstance(part, nn.GroupNorm) and part.num_groups == part.num_channels and part.affine:
            module._modules[name] = _ByChannel(part)
        elif isinstance(part, Upsample2D):
            module._modules[name] = _doubled(part)
        elif part is not None:
            _for_engines(part)
    return module


def _doubled(part: nn.Module) -> nn.Module:
    """An upsampler for engines, or as it is, where it is of another kind."""
    try:
        return Doubled(getattr(part, "upsample", part))
    except NotUnderstoodError:
        return part


class Student(nn.Module):
    """The whole student: token ids and noise to a picture, and its latents beside it."""

    def __init__(self, pipe: Any, schedule: OneWaySchedule, vae: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder(pipe)
        self.encoder = Encoder(pipe, schedule)
        self.decoder = Decoder(pipe, schedule)
        self.vae = Vae(pipe, vae)

    def forward(self, input_ids: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        prompt_embeds = self.text_encoder(input_ids)
        mid, *skips = self.encoder(noise, prompt_embeds)
        latents = self.decoder(mid, skips, noise, prompt_embeds)
        return self.vae(latents), latents
