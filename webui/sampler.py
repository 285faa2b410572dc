"""The sampler *TiUE One Pass*: the student's whole loop as one call of Forge's own denoiser.

    features    = unet.encode(noise, timesteps[0], context)
    predictions = unet.decode(features, timesteps, context)
    latents     = schedule.combine(noise, predictions)

Forge lets a wrapper stand where it would call the model for its view of the finished image. The
wrapper answers with z_0 itself, so guidance, AND, ControlNet and masks above it go on working: they
mix finished images linearly, and z_0 is linear in the predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backend import memory_management
from backend.sampling.sampling_function import sampling_cleanup, sampling_prepare
from modules import sd_samplers, sd_samplers_common
from modules.sd_samplers_kdiffusion import CFGDenoiserKDiffusion
from torch import Tensor

from tiue_core.core.schedule import OneWaySchedule
from tiue_core.errors import TiueError

from .plan import Plan
from .unet import ForgeUNet

NAME = "TiUE One Pass"


class OnePassSampler(sd_samplers_common.Sampler):
    """Noise in, z_0 out, in one model call."""

    def __init__(self, sd_model: Any) -> None:
        super().__init__(NAME)
        self.func = _nothing  # what the base class looks for extra parameters in
        self.model_wrap_cfg = CFGDenoiserKDiffusion(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def sample(
        self,
        p: Any,
        x: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        schedule = Plan.of(p).schedule
        objects = self.model_wrap.inner_model.forge_objects
        before, objects.unet = objects.unet, one_pass(objects.unet, schedule)
        try:
            sampling_prepare(objects.unet, x=x)
            self.initialize(p)
            sigma = (1 / schedule.alphas[0] - 1).sqrt().float().to(x.device)
            x = x * (1 + sigma**2).sqrt()  # Forge's predictor divides by this
            self.last_latent = x
            self.sampler_extra_args = {
                "cond": conditioning,
                "image_cond": image_conditioning,
                "uncond": unconditional_conditioning,
                "cond_scale": p.cfg_scale,
                "s_min_uncond": self.s_min_uncond,
            }

            def paint() -> Tensor:
                z = self.model_wrap_cfg(x, sigma * x.new_ones(len(x)), **self.sampler_extra_args)
                for step in range(len(schedule)):
                    self.callback_state({"i": step})
                return z

            samples = self.launch_sampling(len(schedule), paint)
            self.add_infotext(p)
            sampling_cleanup(objects.unet)
        finally:
            objects.unet = before
        return samples

    def sample_img2img(self, p: Any, *_: Any, **__: Any) -> Tensor:
        raise TiueError(
            f"{NAME} paints from noise, not from a picture: choose another sampling method for "
            "img2img and inpainting, another Hires sampling method for hires fix"
        )


def one_pass(unet: Any, schedule: OneWaySchedule) -> Any:
    """A clone of a ``UnetPatcher`` whose model paints in one pass.

    What is put into its options are functions: cloning copies options, models in them included.
    """
    unet, model = unet.clone(), unet.model
    prediction = model.predictor

    def paint(
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict[str, list] | None = None,
        transformer_options: dict[str, Any] | None = None,
        y: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """In the place of ``KModel.apply_model``: x (B, C, H, W) at noise level t (B,) to z_0."""
        dtype = model.computation_dtype
        noise = prediction.calculate_input(t, x)
        context = c_crossattn.to(dtype)
        host = ForgeUNet(model.diffusion_model)
        conditions = {
            "y": None if y is None else y.to(dtype),
            "transformer_options": {} if transformer_options is None else transformer_options,
        }
        features = host.encode(
            noise.to(dtype), schedule.timesteps[0], context, control=control, **conditions
        )
        predictions = host.decode(
            features,
            schedule.timesteps,
            context,
            chunk=_chunk(model, x, len(schedule)),
            **conditions,
        )
        return schedule.combine(noise.float(), predictions.float())

    other = unet.model_options.get("model_function_wrapper")  # MultiDiffusion's tiles, for one

    def wrapper(_: Callable, arguments: dict[str, Any]) -> Tensor:
        if other is not None:
            return other(paint, arguments)
        return paint(arguments["input"], arguments["timestep"], **arguments["c"])

    needed = unet.model_options.get("memory_peak_estimation_modifier", unet.memory_required)
    decoders = len(schedule)

    def room(shape: list[int]) -> float:
        return needed([shape[0] * decoders, *shape[1:]])

    unet.set_model_unet_function_wrapper(wrapper)
    if hasattr(unet, "set_memory_peak_estimation_modifier"):
        unet.set_memory_peak_estimation_modifier(room)
    else:
        unet.memory_required = room
    return unet


def register() -> None:
    """Put the sampler into the list, in the place of the one of an earlier load."""
    others = [each for each in sd_samplers.all_samplers if each.name != NAME]
    own = sd_samplers_common.SamplerData(NAME, OnePassSampler, ["tiue_one_pass"], {})
    sd_samplers.all_samplers[:] = [*others, own]
    sd_samplers.all_samplers_map[NAME] = own
    sd_samplers.set_samplers()
    sd_samplers.get_sampler_and_scheduler.cache_clear()  # which has seen the list without it


def _chunk(model: Any, x: Tensor, decoders: int) -> int:
    """Decoders at once: halved from K until Forge's estimate fits into free memory."""
    free = memory_management.get_free_memory(x.device)
    chunk = decoders
    while chunk > 1 and model.memory_required([chunk * len(x), *x.shape[1:]]) >= free:
        chunk = (chunk + 1) // 2
    return chunk


def _nothing() -> None:
    """A sampling function without parameters."""
