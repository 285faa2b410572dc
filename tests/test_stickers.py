"""The world and the miniature that learned it. The world needs the Noto Color Emoji font."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tiue_core.errors import TiueError
from tiue_core.stickers.world import (
    BACKGROUNDS,
    KINDS,
    World,
    _font,
    join,
)


def font_is_there() -> bool:
    try:
        _font()
    except TiueError:
        return False
    return True


font = pytest.mark.skipif(not font_is_there(), reason="needs fonts-noto-color-emoji")
STUDENT = Path("tiue_core/stickers/student")
trained = pytest.mark.skipif(not STUDENT.is_dir(), reason="the miniature is not trained yet")


def test_the_full_world_is_as_large_as_promised() -> None:
    assert len(KINDS) >= 60 and len(BACKGROUNDS) == 10
    glyphs = "".join(KINDS.values())
    assert len(set(glyphs)) == len(glyphs)  # no picture has two names
    assert sum(len(names) > 1 for names in KINDS.values()) >= 20


def test_scenes_depend_on_the_seed_alone_and_say_what_they_show() -> None:
    world = World()
    scenes = world.scenes(200, 3)
    assert scenes == world.scenes(200, 3) != world.scenes(200, 4)
    for scene in scenes:
        assert join([thing.kind for thing in scene.things]) in scene.caption
        assert scene.background in scene.caption
    assert 0.15 < np.mean([len(scene.things) == 2 for scene in scenes]) < 0.35


@font
def test_every_kind_has_a_picture_and_stays_in_the_frame() -> None:
    world = World(kinds=len(KINDS), backgrounds=10, pairs=0)
    for index, kind in enumerate(KINDS):
        scene = World.scene(world, random.Random(index))
        picture = np.asarray(scene.render(), dtype=int)
        assert picture.shape == (128, 128, 3)
        drawn = (np.abs(picture - np.array(scene.colour)).sum(-1) > 40).mean()
        assert drawn > 0.03, kind


@font
@trained
def test_the_judge_knows_rendered_scenes() -> None:
    from tiue_core.evaluate.stickers import look
    from tiue_core.stickers.judge import Judge, labels, right
    from tiue_core.stickers.render import render_pool, to_unit

    judge = Judge.load()
    world = World(judge.settings["kinds"], judge.settings["backgrounds"], pairs=0)
    things, background, _ = look(judge, to_unit(render_pool(world, 256, 5)))
    hits, grounds = right((things, background), labels(world, world.scenes(256, 5)))
    assert (hits & grounds).float().mean() >= 0.97


@trained
def test_the_student_paints_what_is_asked() -> None:
    """A net against regressions; the figures themselves come from ``tiue evaluate``."""
    from tiue_core import TiuePipeline
    from tiue_core.evaluate.stickers import measure, paint_student
    from tiue_core.stickers.judge import Judge

    judge = Judge.load()
    world = World(judge.settings["kinds"], judge.settings["backgrounds"], pairs=0)
    painter = paint_student(TiuePipeline.from_pretrained("stickers"))
    found = measure(judge, world, painter, None, 64)
    chance = 1 / judge.settings["kinds"]
    assert found["things_right"] >= 10 * chance
    assert found["background_right"] >= 0.8


def test_right_wants_all_asked_things_among_the_likeliest() -> None:
    from tiue_core.stickers.judge import right

    things = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    wanted = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    background = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    hits, grounds = right((things, background), (wanted, torch.tensor([0, 1, 1])))
    assert hits.tolist() == [True, False, True]
    assert grounds.tolist() == [True, False, True]
    nothing, _ = right((things - 4, background), (wanted, torch.tensor([0, 1, 1])))
    assert nothing.tolist() == [False, False, False]  # the likeliest of what is not there


@font
@pytest.mark.parametrize("way", ["smeared", "bent", "mingled"])
def test_the_judge_finds_nothing_in_spoiled_scenes(way: str) -> None:
    from tiue_core.stickers.judge import Judge
    from tiue_core.stickers.render import render_pool, to_unit
    from tiue_core.train import spoil

    judge = Judge.load()
    world = World(judge.settings["kinds"], judge.settings["backgrounds"], pairs=0)
    images = to_unit(render_pool(world, 128, 6))
    small = torch.nn.functional.interpolate(images, (64, 64), mode="area")
    bad = getattr(spoil, way)(small, torch.Generator().manual_seed(1))
    assert bad.shape == small.shape and (bad - small).abs().mean() > 0.02
    called = (judge(bad)[0] > 0).any(1).float().mean()
    assert called < 0.3 < 0.9 < (judge(small)[0] > 0).any(1).float().mean()


def test_tokenizer_has_a_token_for_words_of_the_world_and_takes_any_text(tmp_path: Path) -> None:
    from tiue_core.stickers.words import make_tokenizer

    tokenizer = make_tokenizer(World(kinds=len(KINDS)).corpus(), tmp_path, 32)
    for caption in ("an apple and a butterfly", "Äpfel & 日本, xylophone"):
        ids = tokenizer(caption).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == (
            caption.lower().replace(" ", "")
        )
