"""A picture of the page is the file of `tiue generate`, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import helpers_students as helpers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiue_core import TiuePipeline, cli, students
from tiue_core.app.inside import look
from tiue_core.app.paint import paint
from tiue_core.app.state import ServerConfig
from tiue_core.app.worker import Models
from tiue_core.cli import console
from tiue_core.errors import TiueError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("page") / "tiny")


@pytest.fixture(scope="module")
def lora(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the small student, on one attention layer."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    name = next(key for key in weights if key.endswith("attn2.to_q.weight"))
    out, into = weights[name].shape
    torch.manual_seed(1)
    layer = "unet." + name.removesuffix(".weight")
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    tensors = {f"{layer}.lora_A.weight": torch.randn(2, into)}
    save_file({**tensors, f"{layer}.lora_B.weight": torch.randn(out, 2)}, path)
    return path


@pytest.fixture(scope="module")
def models(folder: Path, lora: Path) -> Models:
    return Models(ServerConfig.of([students.find(folder)], lora.parent))


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ([], {}),
        (["--decoders", "fast"], {"decoders": "fast"}),
        (["--width", "32", "--height", "24"], {"width": 32, "height": 24}),
        (["--lora", "LORA:0.5"], {"lora": "style", "strength": 0.5}),
        ([], {}),  # once more, without the LoRA
    ],
)
def test_the_same_bytes_as_the_command_line(
    models: Models, folder: Path, lora: Path, tmp_path: Path, words: list[str], order: Any
) -> None:
    words = [word.replace("LORA", str(lora)) for word in words]
    command = ["generate", "a cat", "--student", str(folder), "--seed", "7", "--out", str(tmp_path)]
    assert console.run(cli.build(), [*command, *words]) == 0
    (file,) = tmp_path.glob("*.png")
    picture = paint(models, models.config.order("a cat", 7, **order))
    assert picture.png == file.read_bytes()
    assert file.name == "0000_" + picture.file
    assert list(picture.seconds) == ["text", "encoder", "decoders", "VAE"]


def test_inside_is_the_same_picture_and_its_sums_end_in_it(models: Models) -> None:
    order = models.config.order("a cat", 7)
    plain, seen = paint(models, order), look(models, order, [1, 1, 1, 1], None)
    assert seen.picture.png == plain.png
    assert len(seen.sums) == 5 and len(seen.weights) == 4
    last = np.asarray(seen.sums[-1][1], dtype=int)
    assert np.abs(last - np.asarray(plain.image, dtype=int)).max() <= 1
    changed = look(models, order, [0, 0, 0, 0], None)
    noise = np.asarray(seen.sums[0][1], dtype=int)
    assert np.abs(np.asarray(changed.picture.image, dtype=int) - noise).max() <= 1
    assert changed.picture.png != plain.png and changed.weights[0][1] == 0
    other = look(models, order, [1, 1, 1, 1], "a dog")
    assert not np.array_equal(np.asarray(other.picture.image), np.asarray(plain.image))
    assert np.array_equal(np.asarray(other.features[0][1]), np.asarray(seen.features[0][1]))


def test_words_that_were_dropped_are_told(models: Models) -> None:
    picture = paint(models, models.config.order("abcdefgh " * 10))
    assert any("these words are dropped" in note for note in picture.notes)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers(folder: Path, tmp_path: Path, part: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (path,) = (broken / part).glob("*.safetensors")
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    models = Models(ServerConfig.of([students.find(broken)]))
    with pytest.raises(TiueError, match="NaN"):
        paint(models, models.config.order("a cat"))
    assert len(models) == 0


def test_a_draft_is_the_tiny_decoders_picture(folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    drafting = tmp_path / "drafting"
    shutil.copytree(folder, drafting)
    blocks = len(json.loads((folder / "vae/config.json").read_text())["block_out_channels"])
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(16,) * blocks,
        decoder_block_out_channels=(16,) * blocks,
        num_encoder_blocks=(1,) * blocks,
        num_decoder_blocks=(1,) * blocks,
        latent_channels=4,
    ).save_pretrained(drafting / "taesd")
    models = Models(ServerConfig.of([students.find(drafting)]))
    assert "draft" in models.config.modes
    picture = paint(models, models.config.order("a cat", 3, decoders="draft"))
    pipe = TiuePipeline.from_pretrained(drafting)
    pipe.load_draft()
    expected = pipe("a cat", seed=3, decoders="fast", draft=True).images[0]
    assert np.array_equal(np.asarray(picture.image), np.asarray(expected))
    plain = paint(models, models.config.order("a cat", 3))
    assert not np.array_equal(np.asarray(picture.image), np.asarray(plain.image))


def test_an_owner_may_have_students_optimized(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiue_core.optimize import optimize

    ticks = iter(range(1000, 0, -1))  # everything pays
    monkeypatch.setattr(optimize, "clock", lambda *_: next(ticks))
    quick = Models(ServerConfig.of([students.find(folder)], optimize=True))
    order = quick.config.order("a cat", 3, width=32, height=32)
    picture, plain = paint(quick, order), paint(models, order)
    assert quick.studio(order.student).painter.pipe._optimized is not None
    pixels = [np.asarray(one.image).astype(int) for one in (picture, plain)]
    assert abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.parametrize("given, decoders", [({"steps": 6}, 6), ({"timesteps": [999]}, 1), ({}, 4)])
def test_inside_has_a_slider_for_each_decoder(
    folder: Path, tmp_path: Path, given: dict, decoders: int
) -> None:
    from tiue_core.app.facts import decoders_of

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    index = json.loads((other / "model_index.json").read_text())
    kept = {key: value for key, value in index.items() if key not in ("steps", "timesteps")}
    (other / "model_index.json").write_text(json.dumps({**kept, **given}))
    source = students.find(other)
    assert decoders_of(source) == decoders
    models = Models(ServerConfig.of([source]))
    seen = look(models, models.config.order("a cat"), [1] * 8, None)
    assert len(seen.weights) == decoders


def test_a_lora_that_is_no_numbers(models: Models, lora: Path) -> None:
    tensors = {key: torch.full_like(t, float("nan")) for key, t in load_file(lora).items()}
    save_file(tensors, lora.with_name("nan.safetensors"))
    config = ServerConfig.of(models.config.students.values(), lora.parent)
    with pytest.raises(TiueError, match="NaN or infinity"):
        paint(Models(config), config.order("a cat", lora="nan"))


def test_only_so_many_students_are_loaded(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    sources = [students.find(path) for path in (folder, tmp_path / "a", tmp_path / "b")]
    models = Models(ServerConfig.of(sources))
    for label in ("tiny", "a", "b", "tiny"):
        paint(models, models.config.order("a cat", student=label))
        assert len(models) <= 2
