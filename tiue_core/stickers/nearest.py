"""The drawn scene nearest to a picture, and how various pictures are, read off those scenes.

    kinds, background    those asked for; of two things in the order that fits better
    glyph, mirror, tilt  of the template that fits the picture's foreground best (``matcher.py``)
    place, size          of the foreground's box; then a pattern search over place, size and tilt
                         for the least squared difference of drawn scene and picture

Every number stays within what the world draws, so the answer is a scene of the world. A student
that paints every thing in one pose may be right and sharp in all of them: ``spread`` finds it out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .matcher import (
    Templates,
    box,
    fits,
    ground,
    halves,
    likeliest_order,
    nearest_background,
    templates,
)
from .world import BACKGROUNDS, SHADE, SIZE, TILT, Scene, Thing, World, glyph_image, places, sizes

#: Of the search, in turn: pixels of place and of size, degrees of tilt.
STRIDES = (
    {"x": 3.0, "y": 3.0, "size": 4.0, "tilt": 5.0},
    {"x": 1.0, "y": 1.0, "size": 2.0, "tilt": 2.5},
    {"x": 0.5, "y": 0.5, "size": 1.0, "tilt": 1.2},
)
SHRUNK = 2  #: compared at half the side
STAMP = 46  #: side of a glyph that is compared, pixels
ROUNDS = 4  #: at most, at each stride


def nearest(world: World, images: Tensor, scenes: list[Scene]) -> list[Scene]:
    """For pictures (N, 3, SIZE, SIZE) in [-1, 1] the nearest scenes with their scenes' words."""
    pairs = zip(images.float().cpu(), scenes, strict=True)
    return [_one(world, image, scene) for image, scene in pairs]


def spread(found: list[Scene], asked: list[Scene]) -> float:
    """How various the poses are: over place, size and tilt the mean of their standard deviations,
    in those of ``asked``. Of scenes with one thing each; 1 is as various as the world."""
    ratios = [_deviation(found, name) / _deviation(asked, name) for name in STRIDES[0]]
    return sum(ratios) / len(ratios)


def _deviation(scenes: list[Scene], name: str) -> float:
    return float(np.std([getattr(scene.things[0], name) for scene in scenes]))


def _one(world: World, image: Tensor, asked: Scene) -> Scene:
    rim = ground(image)
    colour = _colour(rim, BACKGROUNDS[asked.background])
    difference = image - rim[:, None, None]
    parts = [difference] if len(asked.things) == 1 else halves(difference)
    known, names = templates(world, nearest_background(rim)), world.kind_names
    fit = torch.stack([fits(part, known) for part in parts])
    best = torch.stack([fit[:, known.kinds == kind].amax(1) for kind in range(len(names))], 1)
    order = likeliest_order(best, [names.index(thing.kind) for thing in asked.things])
    things = []
    for index, (part, kind) in enumerate(zip(parts, order, strict=True)):
        own = torch.where(known.kinds == kind, fit[index], fit.new_tensor(-2.0)).argmax()
        seat = (index, len(order))
        things.append(_refined(_laid(part, known, int(own), seat), part, colour, seat))
    return replace(asked, things=tuple(things), colour=colour)


def _colour(rim: Tensor, mean: tuple[int, int, int]) -> tuple[int, int, int]:
    """The rim's colour, as near as a background of this mean comes to it."""
    shown = ((rim + 1) * 127.5).round().tolist()
    near = (max(m - SHADE, min(m + SHADE, s)) for m, s in zip(mean, shown, strict=True))
    return tuple(int(max(0, min(255, channel))) for channel in near)  # type: ignore[return-value]


def _laid(part: Tensor, known: Templates, best: int, seat: tuple[int, int]) -> Thing:
    """The best template's thing over the foreground's box."""
    top, bottom, left, right = box(part)
    height, width = known.extents[best].tolist()
    grown = ((bottom - top) * (right - left) / (height * width)) ** 0.5
    thing = known.things[best]
    moved = replace(thing, x=(left + right) / 2, y=(top + bottom) / 2, size=thing.size * grown)
    return _within(moved, seat)


def _refined(
    thing: Thing, part: Tensor, colour: tuple[int, int, int], seat: tuple[int, int]
) -> Thing:
    """Step to a better neighbour while there is one, then with smaller steps."""
    shown = F.avg_pool2d(part * 127.5, SHRUNK).permute(1, 2, 0).numpy()

    def error(one: Thing) -> float:
        return float(np.square(_drawn(one, colour) - shown).sum())

    least = error(thing)
    for strides in STRIDES:
        for _ in range(ROUNDS):
            start = thing
            for name, stride in strides.items():
                for step in (stride, -stride):
                    moved = _within(replace(thing, **{name: getattr(thing, name) + step}), seat)
                    if moved != thing and (found := error(moved)) < least:
                        thing, least = moved, found
                        break
            if thing == start:
                break
    return thing


def _drawn(thing: Thing, colour: tuple[int, int, int]) -> np.ndarray:
    """The thing minus its ground, at 1 / SHRUNK of the scene's side and between whole pixels, in
    one affine step: several times faster than ``Scene.render``, and near enough to compare."""
    stamp = _stamp(thing.glyph, thing.mirror)
    scale = SHRUNK * (max(stamp.size) - 2) / thing.size  # stamp's pixels in one of the answer's
    angle = -math.radians(thing.tilt)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    x, y = thing.x / SHRUNK, thing.y / SHRUNK
    back = (a, b, stamp.width / 2 - a * x - b * y, -b, a, stamp.height / 2 + b * x - a * y)
    side = (SIZE // SHRUNK, SIZE // SHRUNK)
    laid = stamp.transform(side, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    pixels = np.asarray(laid, dtype=np.float32)  # colours times their alpha
    return pixels[..., :3] - pixels[..., 3:] * (np.asarray(colour, np.float32) / 255)


@lru_cache(maxsize=512)
def _stamp(glyph: str, mirror: bool) -> Image.Image:
    """The glyph about as large as it is compared, colours multiplied by alpha (RGBa)."""
    stamp = glyph_image(glyph)
    if mirror:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = [max(1, round(side * STAMP / max(stamp.size))) for side in stamp.size]
    padded = Image.new("RGBA", (size[0] + 2, size[1] + 2))  # a clear rim: what lies outside is none
    padded.paste(stamp.resize(size, Image.Resampling.LANCZOS), (1, 1))
    return padded.convert("RGBa")


def _within(thing: Thing, seat: tuple[int, int]) -> Thing:
    """The thing as the world could have drawn it at its seat: (index, count) of a scene's."""
    smallest, largest = sizes(seat[1])
    size = max(smallest, min(largest, thing.size))
    (left, right), (top, bottom) = places(size, *seat)
    return replace(
        thing,
        size=size,
        x=max(left, min(right, thing.x)),
        y=max(top, min(bottom, thing.y)),
        tilt=max(-TILT, min(TILT, thing.tilt)),
    )
