"""The closed form against the loop it replaces: diffusers' DDIMScheduler, in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from small import SD_SCHEDULER

from tiue_core import OneWaySchedule

SHAPE = (2, 4, 3, 5)  # (B, C, H, W)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")


def exact_alphas(config: dict[str, Any]) -> torch.Tensor:
    """alpha in float64 by plain Python, one multiplication at a time."""
    T, first, last = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    ramp = [i / (T - 1) for i in range(T)]
    if config.get("trained_betas"):
        betas = config["trained_betas"]
    elif config["beta_schedule"] == "linear":
        betas = [first + (last - first) * x for x in ramp]
    elif config["beta_schedule"] == "scaled_linear":
        low, high = math.sqrt(first), math.sqrt(last)
        betas = [(low + (high - low) * x) ** 2 for x in ramp]
    else:
        bar = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        betas = [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(T)]
    alphas = list(itertools.accumulate((1 - beta for beta in betas), lambda a, b: a * b))
    if config.get("rescale_betas_zero_snr"):
        roots = [math.sqrt(a) for a in alphas]
        stretch = roots[0] / (roots[0] - roots[-1])
        alphas = [((root - roots[-1]) * stretch) ** 2 for root in roots]
    return torch.tensor(alphas, dtype=torch.float64)


def ddim_loop(config: dict[str, Any], noise: torch.Tensor, predictions: torch.Tensor):
    """K steps of the stock scheduler, its float32 alphas replaced by float64 ones."""
    ddim = DDIMScheduler(**config)
    ddim.alphas_cumprod = exact_alphas(config)
    one = torch.ones((), dtype=torch.float64)
    ddim.final_alpha_cumprod = one if config["set_alpha_to_one"] else ddim.alphas_cumprod[0]
    ddim.set_timesteps(len(predictions))
    z = noise
    for t, prediction in zip(ddim.timesteps, predictions, strict=True):
        z = ddim.step(prediction, int(t), z).prev_sample
    return z


def draw(K: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(K)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return noise, torch.randn((K, *SHAPE), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 6, 8, 10])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_equals_the_ddim_loop(prediction, spacing, to_one, K):
    config = {
        **SD_SCHEDULER,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "set_alpha_to_one": to_one,
    }
    noise, predictions = draw(K)
    z = OneWaySchedule.from_config(config, steps=K).combine(noise, predictions)
    error = (z - ddim_loop(config, noise, predictions)).abs().max().item()
    assert z.dtype == torch.float64
    assert error <= 1e-12


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * i for i in range(1, 51)], "num_train_timesteps": 50},
        {"steps_offset": 0},
        {"num_train_timesteps": 100},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + str(next(iter(changes.values())))[:12],
)
def test_equals_the_ddim_loop_for_other_betas(changes, prediction):
    config = {**SD_SCHEDULER, **changes, "prediction_type": prediction}
    for K, spacing in itertools.product((1, 4, 7), SPACINGS):
        config["timestep_spacing"] = spacing
        noise, predictions = draw(K)
        z = OneWaySchedule.from_config(config, steps=K).combine(noise, predictions)
        reference = ddim_loop(config, noise, predictions)
        # S reaches 2e4 where the cosine's last alpha is 2e-9: the error is relative to it.
        assert (z - reference).abs().max() <= 1e-12 * max(1, reference.abs().max())


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(prediction):
    config = {
        **SD_SCHEDULER,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    noise, predictions = draw(4)
    schedule = OneWaySchedule.from_config(config, steps=4)
    assert schedule.alphas[0] == 0
    z = schedule.combine(noise, predictions)
    assert (z - ddim_loop(config, noise, predictions)).abs().max() <= 1e-12


def test_the_table_of_stable_diffusion():
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    assert schedule.timesteps.tolist() == [751, 501, 251, 1]
    assert len(schedule) == 4
    assert schedule.signal == pytest.approx(4.2346115, abs=5e-8)
    expected = [-2.4919446, -0.9249007, -0.6568044, -0.0121421]
    assert schedule.weights.tolist() == pytest.approx(expected, abs=5e-8)
    alphas = [0.0557190, 0.2749991, 0.6721515, 0.9982960, 0.99915]
    assert schedule.alphas.tolist() == pytest.approx(alphas, abs=5e-8)
    assert schedule.weights.dtype == schedule.alphas.dtype == torch.float64
    last = OneWaySchedule.from_config({**SD_SCHEDULER, "set_alpha_to_one": True}, steps=4)
    assert last.weights[-1].item() == pytest.approx(-0.0413, abs=5e-5)


def test_the_printed_formula_is_wrong_and_ours_is_its_correction():
    noise, predictions = draw(4)
    reference = ddim_loop(SD_SCHEDULER, noise, predictions)
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    alphas = schedule.alphas.tolist()
    final, walk = alphas[-1], list(itertools.pairwise(alphas))

    def weight(alpha: float, following: float) -> float:
        return math.sqrt(1 / following - 1) - math.sqrt(1 / alpha - 1)

    right = [math.sqrt(final) * weight(*pair) for pair in walk]
    assert schedule.weights.tolist() == pytest.approx(right, rel=1e-13)
    printed = [math.sqrt(final / a) * weight(a, b) for a, b in walk]
    printed[-1] = right[-1]  # E_1, the last step, is printed correctly

    z = schedule.signal * noise + sum(e * f for e, f in zip(printed, predictions, strict=True))
    misfit = (z - reference).norm() / reference.norm()
    # What independent N(0, 1) inputs give on average; a given draw lands nearby.
    expected = math.dist(printed, right) / math.hypot(schedule.signal, *right)
    assert expected == pytest.approx(1.608, abs=1e-3)
    assert misfit.item() == pytest.approx(expected, rel=0.15)


def test_coefficients_replay_the_loop():
    noise, predictions = draw(4)
    schedule = OneWaySchedule.from_config({**SD_SCHEDULER, "prediction_type": "v_prediction"}, 4)
    z = noise
    for (a, b), prediction in zip(schedule.coefficients.tolist(), predictions, strict=True):
        z = a * z + b * prediction
    assert (schedule.combine(noise, predictions) - z).abs().max() <= 1e-13


def test_one_explicit_timestep():
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=1, timesteps=[999])
    alphas = exact_alphas(SD_SCHEDULER)
    a, final = alphas[999].item(), alphas[0].item()
    assert schedule.timesteps.tolist() == [999]
    assert schedule.signal == pytest.approx(math.sqrt(final / a), rel=1e-13)
    noise, predictions = draw(1)
    x0 = (noise - math.sqrt(1 - a) * predictions[0]) / math.sqrt(a)
    z = math.sqrt(final) * x0 + math.sqrt(1 - final) * predictions[0]
    assert (schedule.combine(noise, predictions) - z).abs().max() <= 1e-12


def test_explicit_timesteps_go_from_one_to_the_next():
    spaced = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    listed = OneWaySchedule.from_config(SD_SCHEDULER, timesteps=spaced.timesteps)
    assert torch.equal(listed.weights, spaced.weights)
    uneven = OneWaySchedule.from_config(SD_SCHEDULER, timesteps=[900, 50])
    alphas = exact_alphas(SD_SCHEDULER)
    first = math.sqrt(alphas[50] / alphas[900])
    assert uneven.coefficients[0, 0].item() == pytest.approx(first, rel=1e-13)


def test_halves_are_summed_in_float32():
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    noise, predictions = draw(4)
    noise, predictions = noise.half(), predictions.half()
    z = schedule.combine(noise, predictions)
    assert z.dtype == torch.float32
    exact = schedule.combine(noise.double(), predictions.double())
    assert (z - exact).abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (schedule.combine(noise.float(), predictions) - exact).abs().max() < 1e-5


def test_combine_carries_gradients():
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    noise, predictions = draw(4)
    predictions.requires_grad_()
    schedule.combine(noise, predictions).sum().backward()
    assert torch.allclose(predictions.grad[:, 0, 0, 0, 0], schedule.weights)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler, DDIMScheduler])
def test_any_scheduler_of_stable_diffusion(scheduler):
    known = {k: v for k, v in SD_SCHEDULER.items() if k not in ("clip_sample", "set_alpha_to_one")}
    stock = scheduler(**known)
    schedule = OneWaySchedule.from_config(stock, steps=4)
    from_config = OneWaySchedule.from_config(dict(stock.config), steps=4)
    assert torch.equal(schedule.weights, from_config.weights)
    assert schedule.timesteps.tolist() == [751, 501, 251, 1]


def test_trailing_spacing_never_ends_below_zero():
    # numpy's arange gives 62 timesteps for K = 61; the last, -1, would index the noisiest alpha.
    config = {**SD_SCHEDULER, "timestep_spacing": "trailing"}
    schedule = OneWaySchedule.from_config(config, steps=61)
    assert len(schedule) == 61
    assert schedule.timesteps.min() >= 0


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, {"steps": 0}, "steps is 0"),
        ({}, {"steps": -1}, "steps is -1"),
        ({}, {"steps": True}, "steps is True"),
        ({}, {"steps": 2.0}, "steps is 2.0"),
        ({}, {"steps": 1001}, "from 1 to 1000"),
        ({}, {"steps": 1000}, "take fewer steps"),
        ({}, {"timesteps": []}, "timesteps are []"),
        ({}, {"timesteps": 999}, "timesteps are 999"),
        ({}, {"timesteps": [1000]}, "from 0 to 999"),
        ({}, {"timesteps": [-1]}, "from 0 to 999"),
        ({}, {"timesteps": [1.5]}, "whole numbers"),
        ({}, {"timesteps": [5, 5]}, "strictly descending"),
        ({}, {"timesteps": [5, 6]}, "strictly descending"),
        ({}, {"timesteps": [6, 5], "steps": 3}, "leave one out"),
        ({"prediction_type": "flow"}, {}, "prediction_type='flow'"),
        ({"beta_schedule": "sigmoid"}, {}, "beta_schedule='sigmoid'"),
        ({"timestep_spacing": "karras"}, {}, "timestep_spacing='karras'"),
        ({"thresholding": True}, {}, "thresholding=True"),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {},
            "alpha is zero",
        ),
    ],
)
def test_bad_input_is_one_line(changes, arguments, words):
    with pytest.raises(ValueError) as error:
        OneWaySchedule.from_config({**SD_SCHEDULER, **changes}, **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_shapes_and_configs_are_one_line():
    schedule = OneWaySchedule.from_config(SD_SCHEDULER, steps=4)
    noise, predictions = draw(3)
    with pytest.raises(ValueError, match=r"do not fit 4 timesteps"):
        schedule.combine(noise, predictions)
    with pytest.raises(ValueError, match="a scheduler config is a mapping, not str"):
        OneWaySchedule.from_config("scheduler_config.json")


def test_importing_the_package_is_cheap():
    code = "import sys, tiue_core; print(sorted({'torch', 'diffusers', 'numpy'} & {*sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = __import__("tiue_core").Nothing


# --- fewer decoders ------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("K", [2, 4, 10, 50])
def test_fast_is_the_loop_that_hears_a_neighbour(prediction, K):
    """The stock loop, fed for each step the prediction of the decoder that stands in for it."""
    config = {**SD_SCHEDULER, "prediction_type": prediction}
    exact = OneWaySchedule.from_config(config, steps=K)
    fast = OneWaySchedule.from_config(config, steps=K, decoders="fast")
    noise, predictions = draw(K)
    kept = [exact.timesteps.tolist().index(t) for t in fast.timesteps.tolist()]
    assert kept[0] == 0  # the encoder's timestep stays
    nearest = [min(kept, key=lambda k, i=i: abs(k - i)) for i in range(K)]
    looped = ddim_loop(config, noise, predictions[nearest])
    z = fast.combine(noise, predictions[kept])
    assert (z - looped).abs().max().item() <= 1e-12
    left = [i for i in range(K) if i not in kept]
    assert exact.weights[left].abs().sum() < 0.01 * exact.weights.abs().sum()
    assert fast.weights.sum().item() == pytest.approx(exact.weights.sum().item(), rel=1e-13)


def test_fast_drops_the_last_decoder_of_stable_diffusion():
    exact = OneWaySchedule.from_config(SD_SCHEDULER)
    fast = exact.fast()
    assert fast.timesteps.tolist() == [751, 501, 251]
    assert fast.weights.tolist() == pytest.approx([-2.4919446, -0.9249007, -0.6689464], abs=5e-8)
    assert fast.signal == pytest.approx(exact.signal, rel=1e-15)
    assert len(fast.alphas) == 4 and fast.alphas[-1] == exact.alphas[-1]
    assert len(exact.fast(share=0.002)) == 4  # the last one carries 0.3 %
    assert exact.fast(share=1).timesteps[0] == 751


def test_decoders_are_exact_or_fast():
    with pytest.raises(ValueError, match="give one of exact, fast"):
        OneWaySchedule.from_config(SD_SCHEDULER, decoders="quick")
