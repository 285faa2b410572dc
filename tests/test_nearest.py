"""The drawn scene nearest to a picture. Needs the Noto Color Emoji font."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tiue_core.errors import TiueError
from tiue_core.stickers.matcher import match
from tiue_core.stickers.nearest import nearest, spread
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


def test_spread_is_seen_where_the_other_rulers_are_content() -> None:
    """All pictures right and sharp: as various as the world, half as various, in one pose."""
    scenes = ONE.scenes(64, 11)

    def posed(share: float) -> list[Scene]:
        def near(value: float, mean: float) -> float:
            return mean + share * (value - mean)

        middle = SIZE / 2
        return [
            replace(
                scene,
                things=tuple(
                    replace(
                        t,
                        x=near(t.x, middle),
                        y=near(t.y, middle),
                        tilt=share * t.tilt,
                        size=near(t.size, 87),
                    )
                    for t in scene.things
                ),
            )
            for scene in scenes
        ]

    for share, tolerance in ((1.0, 0.1), (0.5, 0.12), (0.0, 0.12)):
        pictures = drawn(posed(share))
        assert match(ONE, pictures, scenes).right.all()
        found = spread(nearest(ONE, pictures, scenes), scenes)
        assert found == pytest.approx(share, abs=tolerance)
