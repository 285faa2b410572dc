"""The ComfyUI pack's arithmetic, without ComfyUI: what its sampling makes of an answer."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from place_nodes import pack_without_host
from torch import Tensor

from tiue_core import OneWaySchedule
from tiue_core.students.checkpoint import STABLE_DIFFUSION

NOISE = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.zeros(2, 3, 8)
PREDICTIONS = torch.randn(4, 2, 4, 6, 5, generator=torch.Generator().manual_seed(1))


class Eps:
    """What ComfyUI does at noise level sigma: Karras' parametrization, x = z sqrt(1 + sigma^2)."""

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma**2 + 1) ** 0.5

    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, x: Tensor) -> Tensor:
        return x - sigma * prediction


class Velocity(Eps):
    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, x: Tensor) -> Tensor:
        return x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * prediction


class Sample(Eps):
    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, x: Tensor) -> Tensor:
        return prediction


class Flow:
    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, x: Tensor) -> Tensor:
        return x - sigma * prediction


class NotLinear(Eps):
    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, x: Tensor) -> Tensor:
        return x - sigma * prediction**2


class FakeUNet:
    """Predictions that do not depend on anything, and what it was asked with."""

    def encode(self, noise: Tensor, timestep: Any, context: Tensor, **conditions: Any) -> Tensor:
        self.noise, self.first, self.conditions = noise, int(timestep), conditions
        return noise

    def decode(self, features: Any, timesteps: Any, context: Tensor, *, chunk: int, **_: Any):
        self.chunk = chunk
        return PREDICTIONS[: len(timesteps)]


@pytest.fixture(scope="module")
def closed_form() -> ModuleType:
    pack_without_host()
    return importlib.import_module("tiue_nodes.nodes.native.closed_form")


def schedule(prediction_type: str = "epsilon") -> OneWaySchedule:
    return OneWaySchedule.from_config({**STABLE_DIFFUSION, "prediction_type": prediction_type})


def ddim(predictions: Tensor) -> Tensor:
    """The loop that one pass replaces, by diffusers' own scheduler, step by step."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(len(predictions))
    z = NOISE.double()
    for prediction, t in zip(predictions.double(), scheduler.timesteps, strict=True):
        z = scheduler.step(prediction, t, z).prev_sample
    return z


@pytest.mark.parametrize("sampling", [Eps(), Velocity(), Sample(), Flow()])
def test_comfyui_arrives_at_the_loops_latents(closed_form: ModuleType, sampling: Any) -> None:
    own, unet = schedule(), FakeUNet()
    affine = closed_form.Affine.of(sampling, own)
    sigma = closed_form.sigmas_of(own)[:1]
    x = affine.unit * NOISE
    seen = sampling.calculate_input(sigma, x)
    assert torch.allclose(seen, NOISE, atol=1e-5)  # the encoder sees pure noise
    answer = closed_form.answer(unet, own, affine, seen, CONTEXT, 2, control={"a": []}, y=None)
    denoised = sampling.calculate_denoised(sigma, answer, x)
    assert (denoised - ddim(PREDICTIONS)).abs().max() < 5e-5
    assert unet.first == 751 and unet.chunk == 2
    assert unet.conditions == {"control": {"a": []}, "y": None}


def test_what_is_not_linear_is_refused(closed_form: ModuleType) -> None:
    for sampling in (NotLinear(), object()):
        with pytest.raises(Exception, match=r"sampling patch on this MODEL .* remove it"):
            closed_form.Affine.of(sampling, schedule())


def test_numbers_that_broke_are_refused(closed_form: ModuleType) -> None:
    own = schedule()
    affine = closed_form.Affine.of(Eps(), own)
    unet = FakeUNet()
    unet.decode = lambda *_, **__: PREDICTIONS * float("nan")  # type: ignore[method-assign]
    with pytest.raises(Exception, match="not a picture"):
        closed_form.answer(unet, own, affine, NOISE, CONTEXT, 4)


@pytest.mark.parametrize("decoders, chunk, expected", [(4, 0, 4), (4, 3, 3), (2, 3, 2)])
def test_decoders_at_once(
    closed_form: ModuleType, decoders: int, chunk: int, expected: int
) -> None:
    assert closed_form.SamplerOptions(chunk=chunk).at_once(decoders) == expected


def test_nothing_of_comfyui_was_imported(closed_form: ModuleType) -> None:
    assert "comfy" not in sys.modules and closed_form is not None
