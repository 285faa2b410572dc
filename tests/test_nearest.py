"""The drawn scene nearest to a picture, and a student that is taught by it. Needs the font."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small import small_unet
from torch.nn import functional as F

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.pipelines.vae import encode_mean
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
from tiue_core.train.plan import plan
from tiue_core.train.prompts import world_scenes
from tiue_core.train.recipe import DistillRecipe, load_recipe
from tiue_core.train.tasks.distill import DistillTask

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


# --- the student that is taught by it --------------------------------------------------------


@pytest.fixture
def recipe(pipe: Any, tmp_path: Path) -> DistillRecipe:
    torch.manual_seed(1)
    pipe.unet = small_unet(norm_num_groups=4, sample_size=16)
    pipe.vae = TiuePipeline.from_pretrained("stickers").vae
    pipe.save_pretrained(tmp_path / "teacher")
    return DistillRecipe(
        task="distill",
        out=tmp_path / "run",
        teacher=str(tmp_path / "teacher"),
        world={"kinds": 6, "backgrounds": 3, "pairs": 0.5},
        steps=4,
        batch_size=4,
        learning_rate=1e-3,
        lora_rank=2,
        lora_alpha=2,
        imitate=1000,
        nearest_scene=1.0,
        init=tmp_path / "teacher" / "unet",
    )


def task_for(recipe: DistillRecipe) -> DistillTask:
    torch.manual_seed(0)
    task = DistillTask(recipe)
    task.prepare(Accelerator(cpu=True))
    return task


def test_what_is_learned_is_nearest_to_what_it_painted(recipe: DistillRecipe) -> None:
    """By the pipeline, when it began: its picture, the nearest scene, the autoencoder."""
    task = task_for(recipe)
    rows, noise = torch.arange(4), torch.randn(4, *task.shape, generator=generator_for(recipe, 1))
    student = TiuePipeline.from_pretrained(recipe.teacher)
    captions = [scene.caption for scene in world_scenes(recipe)[:4]]
    assert captions == task.prompts[:4]
    painted = student(captions, latents=noise, output_type="pt").images.float()
    painted = painted * 2 - 1
    scenes = nearest(World(**recipe.world.model_dump()), painted, world_scenes(recipe)[:4])
    with torch.no_grad():
        wanted = encode_mean(student.vae, drawn(scenes))
    _, embeds = task.embeds(rows)
    found = task.shown.nearest(noise, embeds, rows)
    assert (found - wanted).abs().mean() <= 0.05 * wanted.abs().mean()
    for step in range(3):
        task.update(step, generator_for(recipe, step))
    assert torch.equal(task.shown.nearest(noise, embeds, rows), found)


def test_the_student_goes_to_the_nearest_scene(recipe: DistillRecipe) -> None:
    """Not to the teacher's samples, of which none is made, and its teachers do not move."""
    task = task_for(recipe.model_copy(update={"kl_weight": 0.0, "perceptual": 0.1}))
    before = [p.clone() for p in task.teacher.parameters()]
    logs = [task.update(0, generator_for(recipe, 0)) for _ in range(16)]
    assert set(logs[0]) == {"nearest_scene", "perceptual", "kl", "student_norm"}
    assert logs[-1]["nearest_scene"] < 0.9 * logs[0]["nearest_scene"]
    assert all(torch.equal(p, q) for p, q in zip(before, task.teacher.parameters(), strict=True))
    assert not (recipe.out / "pairs").exists()


def test_its_plan_is_made_without_drawing(recipe: DistillRecipe) -> None:
    assert plan(DistillTask(recipe), Accelerator(cpu=True)).peak > 0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("prompts: y\n", "nearest_scene draws scenes of `world`"),
        ("world: {}\n", "nearest_scene looks at what a student paints: give it as `init`"),
    ],
)
def test_it_needs_the_world_and_a_student(tmp_path: Path, lines: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"task: distill\nout: {tmp_path}\nteacher: x\nsteps: 1\nbatch_size: 1\n"
        f"learning_rate: 1.0\nnearest_scene: 1.0\n{lines}"
    )
    with pytest.raises(TiueError, match=words):
        load_recipe(file)
