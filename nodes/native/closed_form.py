"""The arithmetic of one pass inside a host's sampling loop, without the host.

A host such as ComfyUI asks its diffusion model for a prediction f at the first noise level and
makes ``denoised = a * noise + b * f`` out of it, linear whatever the kind of prediction. One pass
answers with the f from which exactly that arithmetic arrives at z_0 (Eq. 11). Everything the host
puts around its model (guidance, regions, masks, previews) is linear in f too, and goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...tiue_core.core.schedule import OneWaySchedule
from ...tiue_core.errors import TiueError
from ...tiue_core.shared.finite import check_latents
from ...tiue_core.students.checkpoint import Made


@dataclass(frozen=True)
class SamplerOptions:
    """What a person sets on a node that paints."""

    decoders: int = 0  # K; 0: as the student was made
    guidance: float = 1.0
    chunk: int = 0  # decoders at once; 0: as many as memory allows
    speed: str = "plain"  # "exact" shares what decoders share, "fast" has fewer of them, too

    def at_once(self, decoders: int) -> int:
        """Decoders that may run as one batch, of so many."""
        return min(self.chunk or decoders, decoders)

    def fewer(self, schedule: OneWaySchedule) -> OneWaySchedule:
        """The schedule without the decoders that this speed leaves out."""
        return schedule.fast() if self.speed == "fast" else schedule


def schedule_of(made: Made, steps: int = 0, timesteps: Sequence[int] = ()) -> OneWaySchedule:
    """For K = `steps`, for just these timesteps, or as the student was made."""
    if timesteps:
        return OneWaySchedule.from_config(made.scheduler, timesteps=list(timesteps))
    return made.schedule(steps)


def sigmas_of(schedule: OneWaySchedule) -> Tensor:
    """(K + 1,) float32: sqrt(1 / alpha - 1) of every timestep, then of the final alpha."""
    return (1 / schedule.alphas - 1).sqrt().float()


@dataclass(frozen=True)
class Affine:
    """denoised = a * noise + b * prediction at one noise level, where x = unit * noise."""

    unit: float
    a: float
    b: float

    @classmethod
    def of(cls, sampling: Any, schedule: OneWaySchedule) -> Affine:
        """Read off a host's ``model_sampling``, in float64, whatever kind it is.

        Raises:
            TiueError: it makes a picture in a way that is not linear in the prediction.
        """
        sigma = (1 / schedule.alphas[:1] - 1).sqrt()  # (1,) float64
        zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()

        def denoised(prediction: Tensor, noise: Tensor) -> float:
            return sampling.calculate_denoised(sigma, prediction, unit * noise).item()

        try:
            unit = (one / sampling.calculate_input(sigma, one)).item()
            found = cls(unit, a=denoised(zero, one), b=denoised(one, zero))
            both = denoised(2 * one, 3 * one) - 3 * found.a - 2 * found.b
            linear = abs(both) < 1e-6 and abs(found.b) > 1e-6
        except (AttributeError, RuntimeError, TypeError, ZeroDivisionError):
            linear = False
        if not linear:
            kinds = [kind.__name__ for kind in type(sampling).__mro__[:3]]
            raise TiueError(
                f"the sampling patch on this MODEL ({', '.join(kinds)}) is of another kind of "
                "model: remove it, a student needs none"
            )
        return found

    def prediction(self, latents: Tensor, noise: Tensor) -> Tensor:
        """The f that makes denoised = `latents`; both (B, C, H, W)."""
        return (latents - self.a * noise) / self.b


def answer(
    unet: Any,
    schedule: OneWaySchedule,
    affine: Affine,
    noise: Tensor,
    context: Tensor,
    chunk: int,
    control: Any = None,
    **conditions: Any,
) -> Tensor:
    """Encode once, decode K times, combine; as the prediction that the host asked for.

    Args:
        unet: anything with ``encode`` and ``decode``, such as ``ComfyUNet``.
        noise: (B, C, H, W), what the encoder sees, in the model's dtype.
        context: (B, N, D).
        chunk: timesteps decoded at once.
        control: ControlNet's residuals, for the encoder.
        conditions: what else goes to both halves.

    Raises:
        TiueError: what came out is not finite.
    """
    features = unet.encode(noise, schedule.timesteps[0], context, control=control, **conditions)
    predictions = unet.decode(features, schedule.timesteps, context, chunk=chunk, **conditions)
    latents = schedule.combine(noise.float(), predictions.float())
    check_latents(latents, getattr(unet, "unet", None))
    return affine.prediction(latents, noise.float())
