"""Invert for One Pass: the noise of a picture, and the picture edited with it."""

import os
from pathlib import Path

import pytest
import torch
from harness import TOLERANCE, Student

from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced  # isort: skip

SHOWN, EDITED = "a fish on a yellow background", "a fish on a blue background"


@pytest.fixture(scope="module")
def stickers():
    return Student(Path(os.environ["TIUE_STUDENT"]))


def repainted(nodes, student, noise, prompt, latent=None):
    guider, custom = BasicGuider(), SamplerCustomAdvanced()
    make = getattr(guider, "get_guider", None) or guider.execute
    run = getattr(custom, "sample", None) or custom.execute
    guide = make(student.model, student.condition(prompt))[0]
    given = (noise, guide, nodes.Sampler(), nodes.Sigmas(student.model))
    return run(*given, latent or student.latent())[0]["samples"]


def apart(ours, theirs):
    return ((ours - theirs).square().mean().sqrt() / theirs.std()).item()


def test_the_noise_found_paints_the_picture_and_another_prompt_edits_it(nodes, stickers):
    model, positive = stickers.model, stickers.condition(SHOWN)
    picture = nodes.OnePassSampler(model, positive, stickers.latent(), 3)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    noise = nodes.Invert(model, positive, picture, 11, 120)
    wanted = picture["samples"]
    other = nodes.OnePassSampler(model, positive, stickers.latent(), 11)["samples"]
    assert apart(other, wanted) > 0.5  # where the search began
    assert apart(repainted(nodes, stickers, noise, SHOWN), wanted) < 0.25
    edited = stickers.vae.decode(repainted(nodes, stickers, noise, EDITED))[0]
    shown = stickers.vae.decode(wanted)[0]
    corner = (slice(0, 8), slice(0, 8))
    assert shown[corner].mean((0, 1)).argmin() == 2  # yellow: the least of it is blue
    assert edited[corner].mean((0, 1)).argmax() == 2
    # The weights are the very ones: the pass paints what it painted.
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = nodes.OnePassSampler(model, positive, stickers.latent(), 3)["samples"]
    assert (again - wanted).abs().max() < TOLERANCE


def test_what_is_no_picture_and_another_size_are_refused(nodes, stickers):
    positive = stickers.condition(SHOWN)
    with pytest.raises(ValueError, match="holds no picture of the student's: connect VAE Encode"):
        nodes.Invert(stickers.model, positive, stickers.latent(), 0, 1)
    picture = nodes.OnePassSampler(stickers.model, positive, stickers.latent(), 3)
    noise = nodes.Invert(stickers.model, positive, picture, 0, 1)
    with pytest.raises(ValueError, match="connect an Empty Latent Image of 128x128"):
        repainted(nodes, stickers, noise, SHOWN, stickers.latent(1, 16, 24))


def test_a_student_that_was_loaded_as_a_server_loads_it(nodes):
    """In inference mode: no gradient goes through such weights."""
    model, clip, _ = nodes.LoadStudent("stickers")
    assert next(model.model.diffusion_model.parameters()).is_inference()
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(SHOWN))
    picture = nodes.OnePassSampler(model, positive, {"samples": torch.zeros(1, 4, 16, 16)}, 3)
    first, last = (nodes.Invert(model, positive, picture, 0, steps).noise for steps in (1, 3))
    assert last.isfinite().all() and (last - first).abs().max() > 1e-3
