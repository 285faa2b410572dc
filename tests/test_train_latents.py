"""An autoencoder of another shape that keeps a known one's latents, taught with what a student
paints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.train.decoder_teachers import FrozenEncoder
from tiue_core.train.recipe import AutoencoderRecipe, checked
from tiue_core.train.run import run
from tiue_core.train.tasks import autoencoder
from tiue_core.train.tasks.autoencoder import AutoencoderTask, load_autoencoder

NARROW = {
    "latent_channels": 4,
    "sample_size": 128,
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.fixture(autouse=True)
def needs_font(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiue_core.stickers.world import _font

    try:
        _font()
    except TiueError:
        pytest.skip("needs fonts-noto-color-emoji")
    monkeypatch.setattr(AutoencoderTask, "sample", lambda *_: None)


def recipe(out: Path, **more: Any) -> AutoencoderRecipe:
    given: dict[str, Any] = {
        "task": "autoencoder",
        "out": out,
        "latents_of": "stickers",
        "model": NARROW,
        "steps": 2,
        "batch_size": 2,
        "crop": 128,
        "pool": 4,
        "learning_rate": 5e-3,
        "optimizer": "muon",
        "warmup": 1,
        "ema": 0.0,
        "deterministic": 0,
        "precision": "no",
        "log_every": 1,
    }
    return AutoencoderRecipe(**{**given, **more})


def logs(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_another_shape_keeps_the_latents(tmp_path: Path) -> None:
    shipped = load_autoencoder("stickers")
    made = load_autoencoder(str(run(recipe(tmp_path))))
    assert made.config.scaling_factor == shipped.config.scaling_factor
    assert list(made.config.block_out_channels) == NARROW["block_out_channels"]
    assert logs(tmp_path)[0]["strayed"] > 0.5  # it knew nothing of them
    known, before = shipped.state_dict(), AutoencoderTask(recipe(tmp_path / "task"))
    assert before.original is not None
    assert all(torch.equal(known[name], w) for name, w in before.original.vae.state_dict().items())
    moved = {
        n for n, w in made.state_dict().items() if not torch.equal(w, before.vae.get_parameter(n))
    }
    assert {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= moved


def test_the_known_one_itself_does_not_stray(tmp_path: Path) -> None:
    shipped = dict(load_autoencoder("stickers").config)
    same = {key: value for key, value in shipped.items() if key[0] != "_"}
    run(recipe(tmp_path, model=same, init="stickers", steps=1))
    assert logs(tmp_path)[0]["strayed"] < 1e-6


def test_what_a_student_paints_is_decoded_for_the_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "PAINTED", 3)
    given: dict[str, Any] = {"painted": "stickers", "adversarial": 1.0, "steps": 2}
    task = AutoencoderTask(recipe(tmp_path / "task", **given))
    assert task.painted is not None
    latents, small = task.painted.latents, task.painted.small
    student, seed = TiuePipeline.from_pretrained("stickers"), task.recipe.seed
    wanted = student(task.captions[:3], seed=[seed, seed + 1, seed + 2], output_type="pt").images
    with torch.no_grad():
        found = student.vae.decode(latents).sample / 2 + 0.5
    assert (found.clamp(0, 1) - wanted).abs().max() < 1e-4
    assert small.shape == (3, 3, 32, 32)

    with_them = load_file(next(run(recipe(tmp_path / "with", **given)).glob("*.safetensors")))
    given["painted"] = None
    without = load_file(next(run(recipe(tmp_path / "without", **given)).glob("*.safetensors")))
    assert any(not torch.equal(with_them[name], without[name]) for name in without)


def test_latents_that_nobody_would_look_at_are_refused(tmp_path: Path) -> None:
    given = recipe(tmp_path).model_dump()
    for adversarial in ({}, {"adversarial": 0.0}):
        with pytest.raises(TiueError, match=r"^painted .* set `adversarial`\.$"):
            checked(AutoencoderRecipe, {**given, "painted": "stickers", **adversarial})


def test_two_crops_of_one_scene_have_latents_each() -> None:
    vae = load_autoencoder("stickers")
    crops = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = FrozenEncoder(vae, whole=False)(crops, [(5, False), (5, False)])
    with torch.no_grad():
        wanted = torch.cat([vae.quant_conv(vae.encoder(crop[None])) for crop in crops])
    assert (found - wanted).abs().max() < 1e-4 < (wanted[0] - wanted[1]).abs().max()
