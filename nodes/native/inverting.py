"""The noise of a given picture, by gradient steps through ComfyUI's own UNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from comfy import model_management
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...tiue_core.core import invert as core
from . import checks
from .closed_form import schedule_of
from .notes import tell
from .onepass import made_of
from .paint import call_once, guider_for, noise_like
from .unet import ComfyUNet


@dataclass(frozen=True)
class Found:
    """A NOISE socket's object: the noise that was found, picture by picture."""

    noise: Tensor  # (B, C, H, W)
    seed: int  # of other nodes' chance

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        samples = latent["samples"]
        if samples.shape[-2:] != self.noise.shape[-2:]:
            given, own = (
                f"{8 * size[-1]}x{8 * size[-2]}" for size in (samples.shape, self.noise.shape)
            )
            raise ValueError(
                f"This noise is of a picture of {own}, the latent is {given}: connect an Empty "
                f"Latent Image of {own}"
            )
        places = latent.get("batch_index") or range(len(samples))
        return torch.stack([self.noise[place % len(self.noise)] for place in places])


def invert(model: Any, positive: Any, picture: dict[str, Any], seed: int, steps: int) -> Found:
    """The noise from which `model`, told `positive`, paints the picture of a LATENT."""
    checks.student(model)
    samples = picture["samples"]
    if samples.ndim != 4 or samples.shape[1] != 4 or samples.count_nonzero() == 0:
        raise ValueError(
            "This LATENT holds no picture of the student's: connect VAE Encode, with the VAE of "
            "Load Student"
        )
    schedule = schedule_of(made_of(model))
    wanted = model.model.model_config.latent_format.process_in(samples)
    noise = noise_like({"samples": samples}, seed)
    bar = comfy.utils.ProgressBar(steps)

    def call(unet: ComfyUNet, x: Tensor, context: Tensor, **conditions: Any) -> Any:
        with torch.inference_mode(False), torch.enable_grad(), _ordinary(unet.unet):
            options = {
                **conditions.pop("transformer_options"),
                # ComfyUI's default on the CPU writes where gradients would have to pass.
                "optimized_attention_override": lambda _, *given, **more: attention_pytorch(
                    *given, **more
                ),
            }
            control = conditions.pop("control", None)
            context = context.clone()

            def paint(noise: Tensor) -> Tensor:
                residuals = control and {part: list(given) for part, given in control.items()}
                features = unet.encode(
                    noise.to(x.dtype),
                    schedule.timesteps[0],
                    context,
                    control=residuals,
                    transformer_options=options,
                    **conditions,
                )
                predictions = unet.decode(
                    features,
                    schedule.timesteps,
                    context,
                    transformer_options=options,
                    **conditions,
                )
                return schedule.combine(noise, predictions.float())

            given = (wanted.to(x.device).float().clone(), noise.to(x.device).clone())
            return core.invert(paint, *given, steps, bar.update_absolute)

    found, apart = call_once(
        guider_for(model, 4 * len(schedule)), positive, noise, schedule, call, seed
    )
    spread = wanted.std().item()
    tell([f"the noise found paints the picture to within {apart.max().item() / spread:.0%}"])
    return Found(found.to(model_management.intermediate_device()), seed)


@contextmanager
def _ordinary(network: nn.Module) -> Iterator[None]:
    """With copies for weights that ComfyUI loaded in inference mode, through which no gradient
    goes. The very weights are back afterwards."""
    held = [
        (module, name, weight)
        for module in network.modules()
        for name, weight in module._parameters.items()
        if weight is not None
    ]
    try:
        for module, name, weight in held:
            module._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        yield
    finally:
        for module, name, weight in held:
            module._parameters[name] = weight
