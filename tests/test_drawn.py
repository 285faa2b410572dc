"""The scene that a noise stands for, and a student taught by it. Needs the font."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.fft import dctn
from small import small_unet

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.pipelines.vae import encode_mean
from tiue_core.stickers.posed import EACH, SCORES, WAVES, posed, scores, told
from tiue_core.stickers.render import render, to_unit
from tiue_core.stickers.world import KINDS, World, _font
from tiue_core.train.loop import generator_for
from tiue_core.train.make import sample_flops
from tiue_core.train.recipe import DrawnRecipe, checked
from tiue_core.train.run import run
from tiue_core.train.tasks.drawn import DrawnTask

try:
    _font()
except TiueError:
    pytest.skip("needs fonts-noto-color-emoji", allow_module_level=True)

ONE, TWO = World(pairs=0), World(pairs=1)


def test_scores_are_coefficients_of_the_cosine_transform() -> None:
    """SciPy's, orthonormal; so those of noise are N(0, 1) and independent."""
    noise = torch.randn(4096, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    found = scores(noise)
    wanted = dctn(noise.numpy(), axes=(2, 3), norm="ortho")
    for index, (channel, i, j) in enumerate(WAVES):
        np.testing.assert_allclose(found[:, index], wanted[:, channel, i, j], atol=1e-4)
    assert len(set(WAVES)) == SCORES
    assert (found.T.cov() - torch.eye(SCORES)).abs().max() < 0.08


@pytest.mark.parametrize("world", [ONE, TWO], ids=["one thing", "two things"])
def test_noises_stand_for_scenes_as_the_world_draws_them(world: World) -> None:
    """The same means and deviations, glyphs and mirrors equally often, the same words."""
    drawn = world.scenes(3000, 5)
    noise = torch.randn(3000, SCORES, generator=torch.Generator().manual_seed(1))
    found = [posed(scene, said) for scene, said in zip(drawn, noise, strict=True)]
    for one, other in zip(found, drawn, strict=True):
        assert one.caption == other.caption and one.background == other.background
        assert [t.kind for t in one.things] == [t.kind for t in other.things]
    for index in range(len(drawn[0].things)):
        for name, near in (("x", 0.9), ("y", 1.4), ("size", 0.8), ("tilt", 0.7)):
            mine = [getattr(scene.things[index], name) for scene in found]
            theirs = [getattr(scene.things[index], name) for scene in drawn]
            assert abs(np.mean(mine) - np.mean(theirs)) < near
            assert np.std(mine) == pytest.approx(np.std(theirs), rel=0.06)
        assert np.mean([s.things[index].mirror for s in found]) == pytest.approx(0.5, abs=0.03)
        books = [s.things[index] for s in found if s.things[index].kind == "book"]
        shares = [np.mean([t.glyph == glyph for t in books]) for glyph in KINDS["book"]]
        assert shares == pytest.approx([1 / 3] * 3, abs=0.15)
    reds = [np.std([s.colour[0] - 148 for s in which if s.background == "purple"])
            for which in (found, drawn)]  # fmt: skip
    assert reds[0] == pytest.approx(reds[1], rel=0.12)


def test_a_pose_depends_on_its_own_scores_alone() -> None:
    """Of kinds that have two glyphs, so that all six can be seen."""
    (one,), (two,) = (World(kinds=1, pairs=0).scenes(1, 3), TWO.scenes(1, 3))
    kinds = ("apple", "cat")
    both = (replace(t, kind=k) for t, k in zip(two.things, kinds, strict=True))
    two = replace(two, things=tuple(both))
    said = torch.zeros(SCORES)
    said[2] = said[EACH + 2] = -1.0  # of two large things neither has room to move across
    assert posed(one, said) == posed(one, said)
    for scene in (one, two):
        for index, matters in enumerate(told(scene)):
            other = said.clone()
            other[index] = -1.5
            assert (posed(scene, other) != posed(scene, said)) == matters
    other = said.clone()
    other[EACH] = 2.0
    assert posed(two, other).things[0] == posed(two, said).things[0]
    near = posed(one, said + 1, reach=0.25).things[0]
    far, middle = posed(one, said + 1).things[0], posed(one, said).things[0]
    assert near.tilt == pytest.approx(0.25 * far.tilt) and near.glyph == far.glyph
    assert near.x - 64 == pytest.approx(0.25 * (far.x - 64), rel=0.3)
    assert abs(near.size - 87) < abs(middle.size - 87)


# --- the student that is taught by it --------------------------------------------------------


@pytest.fixture
def recipe(pipe: Any, tmp_path: Path) -> DrawnRecipe:
    torch.manual_seed(1)
    pipe.unet = small_unet(norm_num_groups=4, sample_size=16)
    pipe.vae = TiuePipeline.from_pretrained("stickers").vae
    pipe.save_pretrained(tmp_path / "student")
    return checked(
        DrawnRecipe,
        {
            "task": "drawn",
            "out": str(tmp_path / "run"),
            "student": str(tmp_path / "student"),
            "world": {"kinds": 6, "backgrounds": 3, "pairs": 0.5},
            "steps": 4,
            "batch_size": 4,
            "learning_rate": 2e-3,
            "checkpoint_every": 2,
            "sample_every": 4,
        },
    )


def task_for(recipe: DrawnRecipe) -> DrawnTask:
    torch.manual_seed(0)
    task = DrawnTask(recipe)
    task.prepare(Accelerator(cpu=True))
    return task


def test_what_is_learned_is_the_scene_of_the_noise(recipe: DrawnRecipe) -> None:
    task = task_for(recipe)
    rows = torch.tensor([3, 1])
    noise = torch.randn(2, *task.shape, generator=generator_for(recipe, 1))
    found = task.wanted(rows, noise, 0.5)
    words = [task.scenes[3], task.scenes[1]]
    assert [task.prompts[3], task.prompts[1]] == [scene.caption for scene in words]
    scenes = [posed(s, one, 0.5) for s, one in zip(words, scores(noise), strict=True)]
    with torch.no_grad():
        wanted = encode_mean(TiuePipeline.from_pretrained("stickers").vae, to_unit(render(scenes)))
    torch.testing.assert_close(found.z, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.images, to_unit(render(scenes)))
    assert found.told.tolist() == [[float(m) for m in told(scene)] for scene in words]
    torch.testing.assert_close(found.scores, scores(noise))


def test_the_student_and_the_reader_learn_it(recipe: DrawnRecipe) -> None:
    """Pixels and all; autoencoder and text encoder stay."""
    task = task_for(recipe.model_copy(update={"pixels": 0.5, "pixels_of": 2}))
    logs = [task.update(0, generator_for(recipe, 0)) for _ in range(20)]
    assert logs[-1]["pixels"] < 0.8 * logs[0]["pixels"]
    assert logs[-1]["drawn"] < 0.8 * logs[0]["drawn"]
    assert logs[-1]["misread"] < 0.5 * logs[0]["misread"]
    frozen = [task.pipeline.vae, task.pipeline.text_encoder]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())


def test_poses_grow(recipe: DrawnRecipe) -> None:
    task = DrawnTask(recipe.model_copy(update={"steps": 100, "reach": 0.25, "grown": 0.5}))
    assert [task.reach(step) for step in (0, 25, 50, 99)] == [0.25, 0.625, 1.0, 1.0]
    at_once = DrawnTask(recipe.model_copy(update={"reach": 0.25, "grown": 0.0}))
    assert at_once.reach(0) == 1.0


def test_its_result_is_a_student_of_the_same_steps(recipe: DrawnRecipe) -> None:
    """Of K = 1 as of K = 4, and what it was made from stays as it is."""
    folder = Path(recipe.student)
    one = TiuePipeline.from_pretrained(folder)
    parts = one.components
    type(one)(**parts, timesteps=[999]).save_pretrained(folder)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    made = TiuePipeline.from_pretrained(run(recipe))
    assert made.schedule().timesteps.tolist() == [999]
    moved = [(p != q).any() for p, q in zip(made.unet.parameters(), one.unet.parameters(),
                                            strict=True)]  # fmt: skip
    assert any(moved)
    assert before == {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert "taught by drawn scenes" in (recipe.out / "result" / "README.md").read_text()


def test_it_costs_what_it_computes(recipe: DrawnRecipe) -> None:
    """More than the forward and backward of one whole pass, less than of four."""
    unet = dict(TiuePipeline.from_pretrained("stickers-teacher").unet.config)
    unet = {k: v for k, v in unet.items() if not k.startswith("_")}
    again = replace_task(recipe, "distill", teacher="stickers-teacher")
    assert sample_flops(recipe, unet) == pytest.approx(sample_flops(again, unet), rel=1e-6)


def replace_task(recipe: DrawnRecipe, task: str, **more: Any) -> Any:
    from tiue_core.train.recipe import DistillRecipe

    shared = recipe.model_dump(include={"out", "steps", "batch_size", "learning_rate"})
    return DistillRecipe(task=task, imitate=recipe.steps, world={}, **shared, **more)
