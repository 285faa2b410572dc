"""The student's whole loop as one call of a ComfyUI model.

``OnePass`` wraps the diffusion model: where ComfyUI asks for one prediction at the first noise
level, it encodes once, decodes K times, combines them to z_0 (Eq. 11), and answers with the one
prediction from which ComfyUI's own arithmetic arrives at that z_0. So everything above the
diffusion model (guidance, regions, hooks, masks, previews) goes on working: z_0 is linear in the
predictions, and so is everything that ComfyUI mixes there.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...tiue_core.core.schedule import STEPS, OneWaySchedule
from ...tiue_core.shared.finite import check_latents
from ...tiue_core.students.checkpoint import STABLE_DIFFUSION
from . import checks
from .savings import SharedComfyUNet
from .unet import ComfyUNet

KEY = "tiue"  # of our wrappers and attachments


@dataclass(frozen=True)
class Made:
    """How a student was made. Attached to its MODEL, and to every clone of it."""

    scheduler: dict[str, Any]
    steps: int = STEPS
    timesteps: tuple[int, ...] | None = None  # where they are not the scheduler's for `steps`

    @classmethod
    def of(cls, model: Any) -> Made:
        """What Load Student attached, or Stable Diffusion's way for ComfyUI's own loaders."""
        made = model.get_attachment(KEY)
        if made is None:
            sampling = model.get_model_object("model_sampling")
            velocity = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
            kind = "v_prediction" if velocity else "epsilon"
            made = cls({**STABLE_DIFFUSION, "prediction_type": kind})
        return made

    def schedule(self, steps: int = 0, timesteps: Sequence[int] = ()) -> OneWaySchedule:
        """For K = `steps`, for just these timesteps, or as the student was made."""
        own = self.timesteps if steps in (0, self.steps) else None
        chosen = list(timesteps or own or ())
        if chosen:
            return OneWaySchedule.from_config(self.scheduler, timesteps=chosen)
        return OneWaySchedule.from_config(self.scheduler, steps=steps or self.steps)


def sigmas_of(schedule: OneWaySchedule) -> Tensor:
    """(K + 1,) float32: the noise level of every timestep as ComfyUI counts it, then the final."""
    return (1 / schedule.alphas - 1).sqrt().float()


@dataclass(frozen=True, eq=False)
class OnePass:
    """A ``DIFFUSION_MODEL`` wrapper: one encoder pass, K decoders, Eq. 11.

    ComfyUI makes ``denoised = a * noise + b * prediction`` out of what this returns; `a` and `b`
    come from its own ``model_sampling``, in float64.
    """

    schedule: OneWaySchedule
    a: float
    b: float
    fits: Callable[[list[int]], bool]
    chunk: int = 0  # decoders at once; 0: as many as memory allows
    unet: Callable[[Any], ComfyUNet] = ComfyUNet

    @classmethod
    def on(
        cls, model: Any, schedule: OneWaySchedule, chunk: int = 0, speed: str = "plain"
    ) -> OnePass:
        """For a ``BaseModel``; speed "exact" shares what decoders share, "fast" has fewer."""
        schedule = schedule.fast() if speed == "fast" else schedule
        sampling = model.model_sampling
        sigma = (1 / schedule.alphas[:1] - 1).sqrt()  # (1,) float64
        zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
        unit = one / sampling.calculate_input(sigma, one)  # what the model then sees as 1
        return cls(
            schedule=schedule,
            a=sampling.calculate_denoised(sigma, zero, unit).item(),
            b=sampling.calculate_denoised(sigma, one, zero).item(),
            fits=_fits(weakref.ref(model)),
            chunk=chunk,
            unet=ComfyUNet if speed == "plain" else SharedComfyUNet,
        )

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
        unet, schedule = self.unet(executor.class_obj), self.schedule
        checks.first_noise_level(options.get("sigmas"), sigmas_of(schedule)[0].item())

        conditions: dict[str, Any] = {"y": y, "transformer_options": options}
        features = unet.encode(x, schedule.timesteps[0], context, control=control, **conditions)
        predictions = unet.decode(
            features, schedule.timesteps, context, chunk=self._chunk(x), **conditions
        )
        noise = x.float()
        latents = schedule.combine(noise, predictions.float())
        check_latents(latents, executor.class_obj)
        return (latents - self.a * noise) / self.b

    def _chunk(self, x: Tensor) -> int:
        """Decoders at once: as asked, or halved from K until ComfyUI's estimate fits."""
        chunk = min(self.chunk or len(self.schedule), len(self.schedule))
        while not self.chunk and chunk > 1 and not self.fits([chunk * len(x), *x.shape[1:]]):
            chunk = (chunk + 1) // 2
        return chunk


class OnePassSampler(comfy.samplers.Sampler):
    """A SAMPLER for any guider: noise in, z_0 out, in one model call. K is read off the SIGMAS."""

    def __init__(self, chunk: int = 0, speed: str = "plain") -> None:
        self.chunk, self.speed = chunk, speed

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
        model = model_wrap.inner_model
        checks.student(model_wrap.model_patcher)
        checks.empty_latent(latent_image, denoise_mask)
        steps = len(sigmas) - 1
        schedule = Made.of(model_wrap.model_patcher).schedule(max(steps, 0))
        checks.own_sigmas(sigmas, sigmas_of(schedule))

        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        install(options, OnePass.on(model, schedule, self.chunk, self.speed))
        sigma = sigmas[0]
        x = model.model_sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), True)
        latents = model_wrap(
            x, sigma * x.new_ones(len(x)), model_options=options, seed=extra_args.get("seed")
        )
        if callback is not None:
            callback(steps - 1, latents, x, steps)
        return latents


def install(model_options: dict[str, Any], one_pass: OnePass) -> None:
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


def patched(model: Any, steps: int = 0, chunk: int = 0, speed: str = "plain") -> Any:
    """A clone of a MODEL with which the stock KSampler, at one step, paints in one pass.

    Its noise levels end at the student's first timestep, so that every scheduler that begins at
    the highest level asks for the right one.
    """
    schedule = Made.of(model).schedule(steps)
    decoders = chunk or len(schedule)
    first = int(schedule.timesteps[0])
    sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    sampling.set_sigmas(sampling.sigmas[: first + 1])

    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    install(model.model_options, OnePass.on(model.model, schedule, chunk, speed))
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, room_for(decoders))
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
