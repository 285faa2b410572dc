"""Teachers that predict the noise, v or the picture are trained toward what they predict."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from small import SD_SCHEDULER
from torch import Tensor

from tiue_core.core.forward_process import Noising
from tiue_core.train.lora.stages import TransferStage
from tiue_core.train.vsd import denoising, score_distillation

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str) -> Any:
    return DDIMScheduler(**{**SD_SCHEDULER, "prediction_type": kind})


class Knowing:
    """A teacher that knows the clean latents, so it can answer perfectly, in any of the ways."""

    def __init__(self, clean: Tensor, kind: str, off: float = 0.0) -> None:
        self.clean, self.kind, self.off = clean, kind, off
        self.adapted = True
        self.alphas = scheduler(kind).alphas_cumprod.double()

    def __call__(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> SimpleNamespace:
        """diffusers' own equations, of v in DDIMScheduler.get_velocity."""
        alpha = self.alphas[timesteps][:, None, None, None]
        clean = self.clean.double().repeat(len(noisy) // len(self.clean), 1, 1, 1)
        noise = (noisy.double() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        if self.adapted:
            noise = noise + self.off  # what its adapters have learned
            clean = (noisy.double() - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        if self.kind == "v_prediction":
            answer = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        else:
            answer = clean if self.kind == "sample" else noise
        return SimpleNamespace(sample=answer.float())

    def disable_adapters(self) -> None:
        self.adapted = False

    def enable_adapters(self) -> None:
        self.adapted = True


@pytest.fixture
def clean() -> Tensor:
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def loss_of(kind: str, clean: Tensor, answered: str) -> float:
    noising = Noising.from_scheduler(scheduler(kind))
    return denoising(
        Accelerator(cpu=True), Knowing(clean, answered), noising, clean, torch.zeros(4, 1, 1),
        torch.Generator().manual_seed(2), levels=(20, 980),
    ).item()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_answer_costs_nothing(kind: str, clean: Tensor) -> None:
    assert loss_of(kind, clean, kind) <= 1e-6
    for other in set(KINDS) - {kind}:
        assert loss_of(kind, clean, other) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_loras_teacher_too(kind: str, clean: Tensor) -> None:
    @contextmanager
    def autocast() -> Any:
        yield

    def loss(answered: str) -> float:
        group = SimpleNamespace(latents=clean, embeds=torch.zeros(4, 1, 1))
        stage: Any = SimpleNamespace(
            parts=SimpleNamespace(
                noising=Noising.from_scheduler(scheduler(kind)), empty=torch.zeros(1, 1)
            ),
            recipe=SimpleNamespace(drop_prompt=0.1, levels=(20, 980)),
            accelerator=SimpleNamespace(autocast=autocast),
            unet=Knowing(clean, answered),
            _group=lambda generator: group,
            _rows=lambda count, generator: torch.arange(4),
            _noise=lambda like, generator: torch.randn(like.shape, generator=generator),
        )
        return TransferStage._pictures(stage, torch.Generator().manual_seed(2)).item()

    assert loss(kind) <= 1e-6
    for other in set(KINDS) - {kind}:
        assert loss(other) > 1e-2


def test_the_score_is_the_same_however_it_is_told(clean: Tensor) -> None:
    losses = [
        score_distillation(
            Accelerator(cpu=True), Knowing(clean, kind, off=0.3),
            Noising.from_scheduler(scheduler(kind)), clean, torch.zeros(8, 1, 1),
            torch.Generator().manual_seed(2), guidance=1.5, levels=(20, 980),
        ).item()
        for kind in KINDS
    ]  # fmt: skip
    assert losses[0] > 1e-3
    assert max(losses) - min(losses) <= 1e-4 * losses[0]
