"""Runs of a model under one of ComfyUI's guiders: the whole pass, or one of its three calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import comfy.model_patcher
import comfy.sample
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
from ...tiue_core.students.checkpoint import Made
from . import checks, notes
from .closed_form import SamplerOptions, schedule_of, sigmas_of
from .onepass import KEY, OnePassSampler, install, made_of, room_for, seed_globally
from .unet import ComfyUNet

_KNOWS_RATIOS = (  # an empty latent of other families' autoencoders; later than 0.3.64
    "downscale_ratio_spacial" in signature(comfy.sample.fix_empty_latent_channels).parameters
)


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
    latent: dict[str, Any],
    seed: int,
    options: SamplerOptions,
) -> Tensor:
    """The One-Pass Sampler: a LATENT's samples, (B, C, H, W)."""
    latent = sized(model, latent)
    guidance = options.guidance
    if guidance != 1 and negative is None:
        raise ValueError(
            f"guidance is {guidance:g} but there is nothing to guide away from: connect an empty "
            "CLIP Text Encode to negative, or set guidance to 1"
        )
    schedule = schedule_of(made_of(model), options.decoders)
    guider = guider_for(model, options.at_once(len(schedule)))
    guider.set_conds(positive, positive if negative is None else negative)
    guider.tiue_no_negative = negative is None
    guider.set_cfg(guidance)
    samples = guider.sample(
        noise_like(latent, seed),
        latent["samples"],
        OnePassSampler(options),
        sigmas_of(schedule),
        callback=latent_preview.prepare_callback(model, len(schedule)),
        disable_pbar=True,
        seed=seed,
    )
    return samples.to(model_management.intermediate_device())


def sized(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A LATENT that gives size and number, with the student's channels whatever node made it."""
    checks.student(model)
    ratio = latent.get("downscale_ratio_spacial")
    more = {} if ratio is None or not _KNOWS_RATIOS else {"downscale_ratio_spacial": ratio}
    samples = latent["samples"]
    if samples.ndim == 4:
        samples = comfy.sample.fix_empty_latent_channels(model, samples, **more)
    checks.latent(samples, latent.get("noise_mask"))
    return {**latent, "samples": samples}


# --- the three calls -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """A TIUE_FEATURES: what the encoder made of a noise, and whose encoder it was."""

    features: Features
    noise: Tensor  # (B, C, H, W) float32
    schedule: OneWaySchedule
    student: weakref.ref  # to the BaseModel
    latent_format: Any
    seed: int


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
        return own if same else schedule_of(self.made, timesteps=self.timesteps)

    def stacked(self) -> Tensor:
        """(K, B, C, H, W), noisiest timestep first."""
        return torch.stack([self.by_timestep[t] for t in self.timesteps])


def encode(
    model: Any, positive: Any, latent: dict[str, Any], seed: int, decoders: int = 0
) -> Encoded:
    """The first call: encoder features of noise and prompt, at the first timestep."""
    latent = sized(model, latent)
    schedule = schedule_of(made_of(model), decoders)
    noise = noise_like(latent, seed)

    def call(unet: ComfyUNet, x: Tensor, context: Tensor, **conditions: Any) -> Features:
        return unet.encode(x, schedule.timesteps[0], context, **conditions)

    features = call_once(guider_for(model, 1), positive, noise, schedule, call, seed)
    features = _moved(features, model_management.intermediate_device())
    latent_format = model.model.model_config.latent_format
    return Encoded(features, noise, schedule, weakref.ref(model.model), latent_format, seed)


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
    made = made_of(model)
    wanted = schedule_of(made, timesteps=timesteps) if timesteps else encoded.schedule
    times = wanted.timesteps

    def call(unet: ComfyUNet, x: Tensor, context: Tensor, **conditions: Any) -> Tensor:
        conditions.pop("control", None)  # a ControlNet acts on the encoder
        options = conditions["transformer_options"]
        options["original_shape"] = list(x.shape)
        features = _moved(encoded.features, x.device)
        return unet.decode(features, times, context, chunk=chunk or None, **conditions)

    guider = guider_for(model, len(times))
    predictions = call_once(guider, positive, encoded.noise, encoded.schedule, call, encoded.seed)
    predictions = predictions.float().to(model_management.intermediate_device())
    fresh = dict(zip(times.tolist(), predictions, strict=True))
    return Decoded(encoded, {**(previous.by_timestep if previous else {}), **fresh}, made)


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
        notes.look(model_wrap, sigmas[0].item(), noise)
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        install(options, self)
        sigma = sigmas[0].double().view(1)
        unit = model_wrap.inner_model.model_sampling.calculate_input(sigma, torch.ones(1, 1, 1, 1))
        x = noise / unit.item()
        seed_globally(extra_args.get("seed"))
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


def call_once(
    guider: Any,
    positive: Any,
    noise: Tensor,
    schedule: OneWaySchedule,
    call: Callable,
    seed: int,
) -> Any:
    """`call` in the place of the diffusion model, with all that a guider puts around it."""
    guider.inner_set_conds({"positive": positive})
    sampler, empty = _Call(call), torch.zeros_like(noise)
    guider.sample(noise, empty, sampler, sigmas_of(schedule), disable_pbar=True, seed=seed)
    if len(sampler.results) != 1:
        raise ValueError(
            f"This CONDITIONING asks for {len(sampler.results)} model calls (several prompts, "
            "regions or timestep ranges): give Encode and Decode one whole prompt each"
        )
    return sampler.results[0]


def guider_for(model: Any, images: int) -> Any:
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
