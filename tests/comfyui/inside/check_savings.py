"""The speed widget: the same pictures with less work, and what hangs on a MODEL still counts."""

from types import SimpleNamespace

import pytest
import torch
from check_native import lora, low_vram, with_lora  # noqa: F401 (fixtures)
from harness import TOLERANCE, Student
from tiue_pack.nodes.native import savings
from torch.utils.flop_counter import FlopCounterMode

import comfy.samplers  # isort: skip
import nodes as stock  # isort: skip

PROMPT = "a dog on a blue background"


@pytest.fixture
def no_fallback(monkeypatch):
    def fail(error):
        raise AssertionError(f"fell back: {error}")

    monkeypatch.setattr(savings, "_say", fail)


def paint(nodes, student, model=None, size=(16, 16), count=1, positive=None, **options):
    positive = positive or student.condition(PROMPT)
    latent = student.latent(count, *size)
    return nodes.OnePassSampler(model or student.model, positive, latent, 3, **options)["samples"]


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_exact_is_exact(student, nodes, no_fallback, size, chunk):
    out = paint(nodes, student, size=size, count=3, chunk=chunk, speed="exact")
    pixels = {"height": 8 * size[0], "width": 8 * size[1], "count": 3}
    assert student.difference(out, student.reference(PROMPT, 3, **pixels)) <= TOLERANCE


def test_odd_sizes(student, nodes, monkeypatch):
    said = []
    monkeypatch.setattr(savings, "_say", lambda error: said.append(str(error)))
    out = paint(nodes, student, size=(17, 13), speed="exact")
    reference = student.reference(PROMPT, 3, height=136, width=104)
    assert student.difference(out, reference) <= TOLERANCE
    assert set(said) == {"a size that halving had rounded"}


def test_fast_is_the_pipeline_s(student, nodes, no_fallback):
    reference = student.reference(PROMPT, 3, decoders="fast")
    assert student.difference(paint(nodes, student, speed="fast"), reference) <= TOLERANCE
    guider = comfy.samplers.CFGGuider(student.model)
    guider.set_conds(student.condition(PROMPT), student.condition(""))
    guider.set_cfg(1.0)
    noise = nodes.Noise(3).generate_noise(student.latent())
    out = guider.sample(noise, student.latent()["samples"], nodes.Sampler(speed="fast"),
                        nodes.Sigmas(student.model), seed=3)  # fmt: skip
    assert student.difference(out, reference) <= TOLERANCE
    patched = nodes.PatchModel(student.model, speed="fast")
    conditions = student.condition(PROMPT), student.condition("")
    how = (3, 1, 1.0, "euler", "simple")
    out = stock.KSampler().sample(patched, *how, *conditions, student.latent())
    assert student.difference(out[0]["samples"], reference) <= TOLERANCE


def test_it_saves_work(student, nodes):
    def flops(speed):
        with FlopCounterMode(display=False) as counter:
            paint(nodes, student, speed=speed)
        return counter.get_total_flops()

    plain, exact, fast = (flops(speed) for speed in ("plain", "exact", "fast"))
    assert fast < exact < 0.95 * plain


def test_a_lora(student, nodes, lora, no_fallback):  # noqa: F811
    model, clip = with_lora(student, lora)
    positive = student.condition(PROMPT, clip)
    out = paint(nodes, student, model, positive=positive, speed="exact")
    reference = student.reference(PROMPT, 3)
    assert student.difference(out, reference) <= TOLERANCE
    assert student.distance(paint(nodes, student, speed="exact"), reference) > 100 * TOLERANCE


def test_streamed_weights_run_as_they_are(student, nodes, lora, low_vram):  # noqa: F811
    fresh = Student(student.folder)
    model, clip = with_lora(fresh, lora)
    out = paint(nodes, fresh, model, positive=student.condition(PROMPT, clip), speed="exact")
    assert model.lowvram_patch_counter() > 0
    assert student.difference(out, student.reference(PROMPT, 3)) <= TOLERANCE


def test_patched_blocks_run_as_they_are(student, nodes, monkeypatch):
    said = []
    log = SimpleNamespace(info=lambda text, error: said.append(str(error)))
    monkeypatch.setattr(savings, "logging", log)
    savings._said.clear()
    model = student.model.clone()
    model.set_model_output_block_patch(lambda h, skip, options: (1.1 * h, skip))
    outs = [paint(nodes, student, model, speed=speed) for speed in ("plain", "exact", "exact")]
    assert (outs[0] - outs[1]).abs().max() <= TOLERANCE
    assert said == ["patches on the output blocks"]
    moved = (outs[1] - paint(nodes, student, speed="exact")).abs().max()
    assert moved > 100 * TOLERANCE


def test_an_unknown_speed_is_refused(student, nodes):
    with pytest.raises(ValueError, match="choose one of plain, exact, fast"):
        paint(nodes, student, speed="ludicrous")
    assert torch.is_inference_mode_enabled()
