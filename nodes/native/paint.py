"""Runs of a model under one of ComfyUI's guiders: the whole pass, or one of its three calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_patcher
import comfy.samplers
import latent_preview
import torch
from comfy import model_management
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...tiue_core.core.arguments import SEEDS
from ...tiue_core.core.noise import draw_noise
from ...tiue_core.core.schedule import OneWaySchedule
from ...tiue_core.core.unet import Features
from ...tiue_core.shared.finite import check_latents
from . import checks
from .onepass import KEY, Made, OnePassSampler, install, room_for, sigmas_of
from .unet import ComfyUNet


def noise_like(latent: dict[str, Any], seed: int) -> Tensor:
    """(B, C, H, W): image i is drawn from seed + i alone, also after Latent From Batch."""
    samples = latent["samples"]
    places = latent.get("batch_index") or range(len(samples))
    return draw_noise([(seed + place) % SEEDS for place in places], samples.shape[1:])


@dataclass(frozen=True)
class Noise:
    """A NOISE socket's object: every image of a batch from its own seed."""

    seed: int

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        return noise_like(latent, self.seed)


def one_pass(
    model: Any,
    positive: Any,
    negative: Any,
    guidance: float,
    latent: dict[str, Any],
    seed: int,
    decoders: int = 0,
    chunk: int = 0,
    speed: str = "plain",
) -> Tensor:
    """The One-Pass Sampler: a LATENT's samples, (B, C, H, W)."""
    checks.student(model)
    checks.latent(latent["samples"], latent.get("noise_mask"))
    if guidance != 1 and negative is None:
        raise ValueError(
            f"guidance is {guidance:g} but there is nothing to guide away from: connect an empty "
            "CLIP Text Encode to negative, or set guidance to 1"
        )
    schedule = Made.of(model).schedule(decoders)
    guider = _guider(model, min(chunk or len(schedule), len(schedule)))
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(guidance)
    samples = guider.sample(
        noise_like(latent, seed),
        latent["samples"],
        OnePassSampler(chunk, speed),
        sigmas_of(schedule),
        callback=latent_preview.prepare_callback(model, len(schedule)),
        disable_pbar=True,
        seed=seed,
    )
    return samples.to(model_management.intermediate_device())


# --- the three calls -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """A TIUE_FEATURES: what the encoder made of a noise, and whose encoder it was."""

    features: Features
    noise: Tensor  # (B, C, H, W) float32
    schedule: OneWaySchedule
    student: weakref.ref  # to the BaseModel
    latent_format: Any


@dataclass(frozen=True, eq=False)
class Decoded:
    """A TIUE_PREDICTIONS: what decoders made of the same features, by timestep."""

    encoded: Encoded
    by_timestep: dict[int, Tensor]  # (B, C, H, W) float32 each
    made: Made

    @property
    def timesteps(self) -> list[int]:
        """Noisiest first."""
        return sorted(self.by_timestep, reverse=True)

    @property
    def schedule(self) -> OneWaySchedule:
        """The schedule whose timesteps are just those that were decoded."""
        own = self.encoded.schedule
        same = self.timesteps == own.timesteps.tolist()
        return own if same else self.made.schedule(timesteps=self.timesteps)

    def stacked(self) -> Tensor:
        """(K, B, C, H, W), noisiest timestep first."""
        return torch.stack([self.by_timestep[t] for t in self.timesteps])


def encode(
    model: Any, positive: Any, latent: dict[str, Any], seed: int, decoders: int = 0
) -> Encoded:
    """The first call: encoder features of noise and prompt, at the first timestep."""
    checks.student(model)
    checks.latent(latent["samples"], latent.get("noise_mask"))
    schedule = Made.of(model).schedule(decoders)
    noise = noise_like(latent, seed)

    def call(unet: ComfyUNet, x: Tensor, context: Tensor, **conditions: Any) -> Features:
        return unet.encode(x, schedule.timesteps[0], context, **conditions)

    features = _moved(
        _run(model, positive, noise, schedule, call), model_management.intermediate_device()
    )
    return Encoded(features, noise, schedule, weakref.ref(model.model), model.model.latent_format)


def decode(
    model: Any,
    encoded: Encoded,
    positive: Any,
    timesteps: Sequence[int] = (),
    previous: Decoded | None = None,
    chunk: int = 0,
) -> Decoded:
    """The second call: predictions at several timesteps, from the same features.

    Args:
        timesteps: the encoder's schedule by default.
        previous: predictions to add these to; where both have a timestep, these win.
        chunk: timesteps at once, all by default.
    """
    checks.student(model)
    if encoded.student() is not model.model:
        raise ValueError(
            "These features come from another model (or its weights were loaded anew): connect "
            "Encode and Decode to the same Load Student, and run both"
        )
    if previous is not None and previous.encoded is not encoded:
        raise ValueError(
            "These predictions are of other features: connect the same TIUE_FEATURES to every "
            "Decode of a chain"
        )
    wanted = Made.of(model).schedule(timesteps=timesteps) if timesteps else encoded.schedule
    times = wanted.timesteps

    def call(unet: ComfyUNet, x: Tensor, context: Tensor, **conditions: Any) -> Tensor:
        conditions.pop("control", None)  # a ControlNet acts on the encoder
        options = conditions["transformer_options"]
        options["original_shape"] = list(x.shape)
        features = _moved(encoded.features, x.device)
        return unet.decode(features, times, context, chunk=chunk or None, **conditions)

    predictions = _run(model, positive, encoded.noise, encoded.schedule, call, len(times))
    predictions = predictions.float().to(model_management.intermediate_device())
    fresh = dict(zip(times.tolist(), predictions, strict=True))
    return Decoded(encoded, {**(previous.by_timestep if previous else {}), **fresh}, Made.of(model))


def combine(decoded: Decoded, factors: Sequence[float] = (), signal: float = 1.0) -> Tensor:
    """The third call, Eq. 11; ``factors`` multiply E_t, ``signal`` multiplies S."""
    schedule = decoded.schedule
    scaled = schedule.weights
    if factors:
        scaled = scaled * torch.tensor(list(factors), dtype=torch.float64)
    schedule = replace(schedule, weights=scaled, signal=schedule.signal * signal)
    latents = schedule.combine(decoded.encoded.noise, decoded.stacked())
    check_latents(latents)
    return decoded.encoded.latent_format.process_out(latents)


class _Call(comfy.samplers.Sampler):
    """A SAMPLER whose one model call is any of the three: its result is kept, not sampled."""

    def __init__(self, call: Callable) -> None:
        self.call = call
        self.results: list[Any] = []

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        *_: Any,
    ) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        install(options, self)
        x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
        model_wrap(x, sigmas[0] * x.new_ones(len(x)), model_options=options)
        return noise

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        control: dict[str, list] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        conditions = {"y": y, "control": control, "transformer_options": transformer_options or {}}
        self.results.append(self.call(ComfyUNet(executor.class_obj), x, context, **conditions))
        return torch.zeros_like(x)


def _run(
    model: Any,
    positive: Any,
    noise: Tensor,
    schedule: OneWaySchedule,
    call: Callable,
    images: int = 1,
) -> Any:
    """`call` in the place of the diffusion model, with all that a guider puts around it."""
    guider = _guider(model, images)
    guider.inner_set_conds({"positive": positive})
    sampler = _Call(call)
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas_of(schedule), disable_pbar=True)
    if len(sampler.results) != 1:
        raise ValueError(
            f"This CONDITIONING asks for {len(sampler.results)} model calls (several prompts, "
            "regions or timestep ranges): give Encode and Decode one whole prompt each"
        )
    return sampler.results[0]


def _guider(model: Any, images: int) -> Any:
    """A guider that has memory estimated for so many times the batch.

    Its options are a copy, the MODEL itself stays the same object: a clone would be loaded anew.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
    add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, KEY, room_for(images), guider.model_options, True
    )
    return guider


def _moved(features: Features, device: Any) -> Features:
    skips = tuple(skip.to(device) for skip in features.skips)
    return Features(features.mid.to(device), skips, features.size)
