"""The drawn scene nearest to a picture, and a decoder that is taught by it. Needs the font."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.stickers.nearest import nearest
from tiue_core.stickers.render import render, to_unit
from tiue_core.stickers.world import (
    BACKGROUNDS,
    SHADE,
    SIZE,
    TILT,
    Scene,
    World,
    _font,
    places,
    sizes,
)
from tiue_core.train.loop import generator_for
from tiue_core.train.recipe import AutoencoderRecipe
from tiue_core.train.tasks.autoencoder import AutoencoderTask, load_autoencoder

try:
    _font()
except TiueError:
    pytest.skip("needs fonts-noto-color-emoji", allow_module_level=True)

ONE, TWO = World(pairs=0), World(pairs=1)


def drawn(scenes: list[Scene]) -> torch.Tensor:
    return to_unit(render(scenes))


@pytest.mark.parametrize("world", [ONE, TWO], ids=["one", "two"])
def test_a_drawn_scene_is_its_own_nearest(world: World) -> None:
    scenes = world.scenes(24, 5)
    found = nearest(world, drawn(scenes), scenes)
    for scene, again in zip(scenes, found, strict=True):
        for thing, other in zip(scene.things, again.things, strict=True):
            assert (other.kind, other.glyph) == (thing.kind, thing.glyph)
            assert abs(other.x - thing.x) <= 3 and abs(other.y - thing.y) <= 3
            assert abs(other.size - thing.size) <= 4
        assert (again.caption, again.background) == (scene.caption, scene.background)
    assert (drawn(found) - drawn(scenes)).abs().mean() <= 0.02


def test_a_smeared_picture_comes_back_sharp() -> None:
    scenes = ONE.scenes(16, 6)
    smeared = F.avg_pool2d(drawn(scenes), 9, 1, 4, count_include_pad=False)
    found = drawn(nearest(ONE, smeared, scenes))
    assert (found - drawn(scenes)).abs().mean() <= 0.5 * (smeared - drawn(scenes)).abs().mean()


def test_two_things_stay_on_their_sides() -> None:
    """The words say which two; where each is, the picture says."""
    scenes = TWO.scenes(12, 7)
    turned = [replace(scene, things=scene.things[::-1]) for scene in scenes]
    found = nearest(TWO, drawn(scenes), turned)
    for scene, again in zip(scenes, found, strict=True):
        assert [t.kind for t in again.things] == [t.kind for t in scene.things]
        assert again.things[0].x < SIZE / 2 < again.things[1].x


@pytest.mark.parametrize("world", [ONE, TWO], ids=["one", "two"])
def test_whatever_the_picture_the_answer_is_of_the_world(world: World) -> None:
    """Noise, an even ground, a ground of another colour: what was asked, where it may be."""
    scenes = world.scenes(9, 8)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(9, 3, SIZE, SIZE, generator=generator) * 2 - 1
    pictures[3:6] = torch.tensor([0.9, -0.9, 0.1])[:, None, None]
    pictures[6:] = drawn(world.scenes(9, 9))[6:]
    for scene, found in zip(scenes, nearest(world, pictures, scenes), strict=True):
        assert sorted(t.kind for t in found.things) == sorted(t.kind for t in scene.things)
        mean = BACKGROUNDS[scene.background]
        assert all(abs(c - m) <= SHADE for c, m in zip(found.colour, mean, strict=True))
        for index, thing in enumerate(found.things):
            count = len(found.things)
            columns, rows = places(thing.size, index, count)
            assert sizes(count)[0] <= thing.size <= sizes(count)[1] and abs(thing.tilt) <= TILT
            assert columns[0] <= thing.x <= columns[1] and rows[0] <= thing.y <= rows[1]


# --- the decoder that is taught by it ---------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> AutoencoderRecipe:
    config = load_autoencoder("stickers").config
    names = "block_out_channels down_block_types up_block_types latent_channels norm_num_groups"
    return AutoencoderRecipe(
        task="autoencoder",
        out=tmp_path / "run",
        init="stickers",
        freeze_encoder=True,
        restored="stickers",
        restored_pool=20,
        world={"kinds": 6, "backgrounds": 3, "pairs": 0.5},
        model={"sample_size": 128, "layers_per_block": 1, **{n: config[n] for n in names.split()}},
        pool=8,
        crop=128,
        deterministic=0,
        steps=4,
        batch_size=4,
        learning_rate=3e-4,
        optimizer="muon",
        log_every=1,
    )


def task_for(recipe: AutoencoderRecipe) -> AutoencoderTask:
    task = AutoencoderTask(recipe)
    task.prepare(Accelerator(cpu=True))
    return task


def test_latents_lead_to_the_scene_nearest_to_their_picture(recipe: AutoencoderRecipe) -> None:
    """The latents are the student's, and decoded by its own decoder they are near that scene."""
    restored = task_for(recipe).restored
    assert restored is not None and len(restored.latents) == 20
    vae = TiuePipeline.from_pretrained("stickers").vae
    with torch.no_grad():
        pictures = vae.decode(restored.latents).sample
    scenes = to_unit(restored.scenes)
    own = (pictures - scenes).abs().mean((1, 2, 3))
    others = (pictures - scenes.roll(1, 0)).abs().mean((1, 2, 3))
    assert (own < others).all() and own.mean() < 0.5 * others.mean()


def test_they_are_painted_once(recipe: AutoencoderRecipe) -> None:
    first = task_for(recipe).restored
    again = task_for(recipe.model_copy(update={"restored": "nowhere"})).restored
    assert first is not None and again is not None
    assert torch.equal(first.latents, again.latents) and torch.equal(first.scenes, again.scenes)


def test_the_decoder_learns_what_was_meant(recipe: AutoencoderRecipe) -> None:
    """On the student's latents; the encoder, and so everybody's latents, stay as they are."""
    task = task_for(recipe)
    restored = task.restored
    assert restored is not None
    latents, scenes = restored.latents, to_unit(restored.scenes)

    def error() -> float:
        with torch.no_grad():
            return float((task.vae.decode(latents).sample - scenes).abs().mean())

    before, encoder = error(), [p.clone() for p in task.vae.encoder.parameters()]
    for step in range(20):
        task.update(step, generator_for(recipe, step))
    assert error() < 0.9 * before
    assert all(
        torch.equal(*two) for two in zip(encoder, task.vae.encoder.parameters(), strict=True)
    )


def test_crops_cannot_be_restored(recipe: AutoencoderRecipe) -> None:
    with pytest.raises(ValueError, match="set `crop` to 128"):
        AutoencoderRecipe(**{**recipe.model_dump(), "crop": 64})
