"""What is looked up before every picture, quickly: are the weights as they were, where do they lie,
which schedule. Each against the slow way of the library it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from tiue_core.core.schedule import OneWaySchedule
from tiue_core.shared.layers import Bits, fingerprint, walk
from tiue_core.shared.snapshot import Snapshot


def tensors_of(model: nn.Module) -> list[Tensor]:
    return Snapshot(model).tensors()


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    last = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), last)


CHANGES = {
    "one element by .data": lambda m: m[0].weight.data[3, 2].add_(1e-3),
    "two rows exchanged": lambda m: m[0].weight.data.copy_(m[0].weight[[1, 0, *range(2, 8)]]),
    "a row's own numbers": lambda m: m[0].weight.data.copy_(m[0].weight[:, [2, 3, 0, 1, 4, 5]]),
    "a bias": lambda m: m[2].bias.data.mul_(2),
    "another tensor": lambda m: setattr(m[1][0], "weight", nn.Parameter(m[1][0].weight + 1)),
    "the tensor's own data": lambda m: setattr(m[1][0].weight, "data", m[1][0].weight + 1),
    "another module": lambda m: m.__setitem__(0, nn.Linear(6, 8)),
    "half precision": lambda m: m.half(),
    "channels last": lambda m: m[2].weight.data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_by_who_asks_again(change: str) -> None:
    layers, bits = _layers(), Bits()
    before = bits.mark(tensors_of(layers))
    assert bits.mark(tensors_of(layers)) == before == fingerprint(tensors_of(layers))
    with torch.no_grad():
        CHANGES[change](layers)
    now = bits.mark(tensors_of(layers))
    assert now == fingerprint(tensors_of(layers)) != before


def test_scattered_and_empty_tensors_are_read_too() -> None:
    bits, scattered = Bits(), torch.arange(24.0).reshape(4, 6).T[::2]
    before = bits.mark([scattered, torch.zeros(0, 3)])
    scattered[1, 1] += 1
    assert bits.mark([scattered, torch.zeros(0, 3)]) != before


def test_modules_and_tensors_are_all_found(pipe: Any) -> None:
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert set(walk(model)) == set(model.modules())
        wanted = (*model.parameters(), *model.buffers())
        assert {id(t) for t in tensors_of(model)} == {id(t) for t in wanted}


OTHER_TENSORS = {
    "a weight": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight + 1)),
    "an equal one of one element": lambda m: m[1][0].register_buffer("scale", torch.ones(1)),
    "a first one": lambda m: m[1][1].register_buffer("shift", torch.ones(3)),
    "none": lambda m: m[0].register_parameter("bias", None),
    "all, in another dictionary": lambda m: setattr(
        m[0], "_parameters", {name: nn.Parameter(t + 1) for name, t in m[0]._parameters.items()}
    ),
}


@pytest.mark.parametrize("change", OTHER_TENSORS)
def test_a_snapshots_tensors_are_those_of_now(change: str) -> None:
    layers = _layers()
    layers[1][0].register_buffer("scale", torch.ones(1))
    snapshot = Snapshot(layers)
    before = [*snapshot.tensors()]
    OTHER_TENSORS[change](layers)
    now = {id(t) for t in snapshot.tensors()}
    assert now == {id(t) for t in (*layers.parameters(), *layers.buffers())}
    assert now != {id(t) for t in before}


def test_device_is_diffusers_own(pipe: Any) -> None:
    def own() -> torch.device:
        return DiffusionPipeline._execution_device.fget(pipe)  # type: ignore[attr-defined]

    assert pipe._execution_device == own() == torch.device("cpu")
    pipe.unet.to("meta")
    assert pipe._execution_device == own()


def test_hooks_say_where_a_model_runs(pipe: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        add_hook_to_module(part, AlignDevicesHook(execution_device="meta"))
    assert pipe._execution_device == torch.device("meta")


def test_schedule_follows_the_scheduler(pipe: Any) -> None:
    first = pipe.schedule()
    assert pipe.schedule() is first
    assert pipe.schedule(2).timesteps.tolist() != first.timesteps.tolist()
    pipe.scheduler.register_to_config(timestep_spacing="linspace")
    assert pipe.schedule().timesteps.tolist() == (
        OneWaySchedule.from_config(pipe.scheduler, steps=len(first)).timesteps.tolist()
    )
    pipe.scheduler = DDIMScheduler(beta_schedule="linear")
    assert torch.equal(
        pipe.schedule().weights, OneWaySchedule.from_config(pipe.scheduler, steps=4).weights
    )
    with pytest.raises(ValueError, match="steps"):
        pipe.schedule(True)
