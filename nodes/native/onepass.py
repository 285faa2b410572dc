"""The student's whole loop as one call of a ComfyUI model.

``OnePass`` wraps the diffusion model: where ComfyUI asks for one prediction at the first noise
level, it answers with the one from which ComfyUI's own arithmetic arrives at z_0 (``closed_form``).

A ``BaseModel`` is shared by all clones of a MODEL, and bears whatever patches the clone that is
loaded brought. So nothing is read from it before sampling has begun: what belongs to one MODEL is
asked of that MODEL.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...tiue_core.core.ddim import cumulative_alphas
from ...tiue_core.core.schedule import OneWaySchedule
from ...tiue_core.students.checkpoint import Made
from . import checks, notes
from .closed_form import Affine, SamplerOptions, answer, schedule_of, sigmas_of
from .savings import SharedComfyUNet
from .unet import ComfyUNet

KEY = notes.KEY  # of our wrappers and attachments


def made_of(model: Any) -> Made:
    """What Load Student attached to a MODEL, or Stable Diffusion's way for ComfyUI's loaders."""
    made = model.get_attachment(KEY)
    if made is None:
        sampling = model.get_model_object("model_sampling")
        velocity = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        made = Made.stable_diffusion("a model", "v_prediction" if velocity else "epsilon")
    return made


@dataclass(frozen=True, eq=False)
class OnePass:
    """A ``DIFFUSION_MODEL`` wrapper: one encoder pass, K decoders, Eq. 11."""

    schedule: OneWaySchedule
    affine: Affine
    fits: Callable[[list[int]], bool]
    options: SamplerOptions

    @classmethod
    def on(
        cls, model: Any, sampling: Any, schedule: OneWaySchedule, options: SamplerOptions
    ) -> OnePass:
        """For a ``BaseModel`` that runs with this ``model_sampling``."""
        schedule = options.fewer(schedule)
        return cls(schedule, Affine.of(sampling, schedule), _fits(weakref.ref(model)), options)

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
        options = {} if transformer_options is None else transformer_options
        checks.first_noise_level(options.get("sigmas"), sigmas_of(self.schedule)[0].item())
        kind = ComfyUNet if self.options.speed == "plain" else SharedComfyUNet
        return answer(
            kind(executor.class_obj),
            self.schedule,
            self.affine,
            x,
            context,
            self._chunk(x),
            control,
            y=y,
            transformer_options=options,
        )

    def _chunk(self, x: Tensor) -> int:
        """Decoders at once: as asked, or halved from K until ComfyUI's estimate fits."""
        chunk = self.options.at_once(len(self.schedule))
        while not self.options.chunk and chunk > 1:
            if self.fits([chunk * len(x), *x.shape[1:]]):
                break
            chunk = (chunk + 1) // 2
        return chunk


class OnePassSampler(comfy.samplers.Sampler):
    """A SAMPLER for any guider: noise in, z_0 out, in one model call. K is read off the SIGMAS."""

    def __init__(self, options: SamplerOptions | None = None) -> None:
        self.options = options or SamplerOptions()

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        patcher, model = model_wrap.model_patcher, model_wrap.inner_model
        checks.student(patcher)
        checks.empty_latent(latent_image, denoise_mask)
        steps = len(sigmas) - 1
        schedule = schedule_of(made_of(patcher), max(steps, 0))
        checks.own_sigmas(sigmas, sigmas_of(schedule))
        notes.look(model_wrap, sigmas[0].item(), noise)

        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        one_pass = OnePass.on(model, model.model_sampling, schedule, self.options)
        install(options, one_pass)
        x = noise * one_pass.affine.unit
        seed_globally(extra_args.get("seed"))
        latents = model_wrap(
            x, sigmas[0] * x.new_ones(len(x)), model_options=options, seed=extra_args.get("seed")
        )
        if callback is not None:
            callback(steps - 1, latents, x, steps)
        return latents


def seed_globally(seed: int | None) -> None:
    """Seed torch's own generator, as ComfyUI's noise does: some patches (ToMe) draw from it."""
    if seed is not None:
        torch.manual_seed(seed)


def install(model_options: dict[str, Any], one_pass: Any) -> None:
    """Make `one_pass` the innermost wrapper of the diffusion model, in the place of another one."""
    options = model_options.setdefault("transformer_options", {})
    wrappers = options.setdefault("wrappers", {}).setdefault(WrappersMP.DIFFUSION_MODEL, {})
    wrappers.pop(KEY, None)
    wrappers[KEY] = [one_pass]  # dicts keep order, and the last wrapper is the innermost


def room_for(decoders: int) -> Callable:
    """A ``PREPARE_SAMPLING`` wrapper: have memory estimated for the decoders, not for one image."""

    def prepare(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        shape = [noise_shape[0] * decoders, *noise_shape[1:]]
        return executor(model, shape, *args, **kwargs)

    return prepare


class OwnSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The ``model_sampling`` of a patched MODEL: noise levels that end at the student's first.

    So every scheduler that begins at the highest level asks for the right one.
    """

    of_tiue = True

    def __init__(self, made: Made, first: int) -> None:
        super().__init__()
        alphas = cumulative_alphas(made.scheduler)[: first + 1]
        self.set_sigmas((1 / alphas - 1).sqrt())


def patched(model: Any, given: SamplerOptions) -> Any:
    """A clone of a MODEL with which the stock KSampler, at one step, paints in one pass."""
    made = made_of(model)
    schedule = schedule_of(made, given.decoders)
    sampling = OwnSampling(made, int(schedule.timesteps[0]))
    before = model.object_patches.get("model_sampling")

    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    model.add_object_patch("latent_format", model.model.model_config.latent_format)
    install(model.model_options, OnePass.on(model.model, sampling, schedule, given))
    for kind, wrapper in {
        WrappersMP.PREPARE_SAMPLING: room_for(given.at_once(len(schedule))),
        WrappersMP.SAMPLER_SAMPLE: notes.Guard(sampling, sigmas_of(schedule)[0].item(), before),
        WrappersMP.PREDICT_NOISE: notes.remember,
    }.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def _fits(model: weakref.ref) -> Callable[[list[int]], bool]:
    """Whether ComfyUI estimates that an input of a shape fits into free memory now.

    The weak reference keeps a wrapper, which the model's patcher holds, from holding the model.
    """

    def fits(shape: list[int]) -> bool:
        alive = model()
        if alive is None:
            return True
        device = alive.current_patcher.load_device
        return alive.memory_required(shape) < model_management.get_free_memory(device)

    return fits
