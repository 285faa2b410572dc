"""The ruler that learned nothing. It needs the Noto Color Emoji font."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tiue_core.errors import TiueError
from tiue_core.stickers import matcher
from tiue_core.stickers.matcher import match
from tiue_core.stickers.render import render, to_unit
from tiue_core.stickers.world import World, _font

try:
    _font()
except TiueError:
    pytest.skip("needs fonts-noto-color-emoji", allow_module_level=True)

ONE, TWO = World(kinds=6, backgrounds=3, pairs=0), World(kinds=6, backgrounds=3, pairs=1)


def test_drawn_scenes_fit_their_own_glyphs() -> None:
    scenes = ONE.scenes(24, 4)
    found = match(ONE, to_unit(render(scenes)), scenes)
    assert found.right.all()
    assert found.fit.min() > 0.85 and found.fit.mean() > 0.96
    assert found.edges.mean() == pytest.approx(1, abs=0.1)


def test_another_kind_is_wrong_and_fits_worse() -> None:
    scenes = ONE.scenes(24, 4)
    asked = scenes[1:] + scenes[:1]
    found = match(ONE, to_unit(render(scenes)), asked)
    same = torch.tensor(
        [a.things[0].kind == b.things[0].kind for a, b in zip(scenes, asked, strict=True)]
    )
    assert torch.equal(found.right, same)
    assert found.fit[~same].max() < 0.9


def test_blur_costs_fit_and_edges_long_before_the_kind() -> None:
    scenes = ONE.scenes(24, 4)
    images = to_unit(render(scenes))
    small = F.interpolate(images, (16, 16), mode="area")
    blurred = F.interpolate(small, (128, 128), mode="bilinear")
    sharp, soft = match(ONE, images, scenes), match(ONE, blurred, scenes)
    assert soft.right.float().mean() > 0.6
    assert soft.edges.mean() < 0.5 * sharp.edges.mean()
    assert (soft.fit < sharp.fit).all()


def test_two_things_are_matched_each_in_its_half_whatever_their_order() -> None:
    scenes = TWO.scenes(16, 5)
    images = to_unit(render(scenes))
    found = match(TWO, images, scenes)
    assert found.right.float().mean() > 0.9
    assert torch.equal(match(TWO, images.flip(-1), scenes).right, found.right)
    lonely = images.clone()
    lonely[..., 64:] = images[..., :1, -1:]  # the right half is ground
    assert match(TWO, lonely, scenes).right.float().mean() < 0.3


def test_specks_and_a_flat_picture_are_no_thing() -> None:
    scenes = ONE.scenes(8, 6)
    images = to_unit(render(scenes))
    specked = images.clone()
    specked[:, :, 5, 5], specked[:, :, 120, 60] = 1, -1
    plain, with_specks = match(ONE, images, scenes), match(ONE, specked, scenes)
    assert torch.allclose(plain.fit, with_specks.fit, atol=0.02)
    flat = torch.zeros(8, 3, 128, 128)
    found = match(ONE, flat, scenes)
    assert found.fit.abs().max() < 1e-6 and torch.isfinite(found.edges).all()


def test_templates_are_drawn_once_a_background() -> None:
    matcher.templates.cache_clear()
    scenes = ONE.scenes(12, 7)
    match(ONE, to_unit(render(scenes)), scenes)
    assert matcher.templates.cache_info().misses <= ONE.backgrounds
