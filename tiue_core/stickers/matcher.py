"""A judge that learned nothing: it lays the drawn glyphs over a picture and sees which one fits.

    ground      the median colour of the picture's rim
    foreground  picture - ground, cut to the box of what differs, brought to SIDE x SIDE
    template    a glyph drawn on that background's colour, mirrored or not, tilted, treated alike
    fit         Pearson's correlation of the two over all pixels and colours
    kind        that of the template with the highest fit
    edges       energy of the foreground's gradient over the gradient of the best glyph asked for

A blurred picture keeps its kind for a classifier that learned to see through blur; here it loses
fit and edges with every pixel that it smears. Of two things each half is matched alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from .render import render, to_unit
from .world import BACKGROUNDS, KINDS, SIZE, Scene, Thing, World

SIDE = 48  #: of a matched box, pixels
TILTS = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)  #: degrees; a scene's are between the outer ones
DIFFERS = 0.25  #: from the ground, in [-1, 1], at least so much, to be foreground
INK = 3  #: pixels of a row or column of the box, at least: specks do not widen it
RIM = 3  #: pixels at the border that show the ground
GAP = range(48, 81)  #: columns between which two things part


@dataclass(frozen=True)
class Match:
    """What the ruler says of pictures, (N,) each: ``right`` of those asked for, fit and edges."""

    right: Tensor
    fit: Tensor
    edges: Tensor

    def of(self, rows: list[int]) -> Match:
        """These pictures' alone."""
        return Match(self.right[rows], self.fit[rows], self.edges[rows])

    def means(self) -> dict[str, float]:
        return {
            "matcher_right": float(self.right.float().mean()),
            "fit": float(self.fit.mean()),
            "edges": float(self.edges.mean()),
        }


def match(world: World, images: Tensor, scenes: list[Scene]) -> Match:
    """Pictures (N, 3, SIZE, SIZE) in [-1, 1] against what their scenes ask for."""
    rows = [_one(world, image, scene) for image, scene in zip(images, scenes, strict=True)]
    right, fit, edges = zip(*rows, strict=True)
    return Match(torch.tensor(right), torch.tensor(fit), torch.tensor(edges))


def _one(world: World, image: Tensor, scene: Scene) -> tuple[bool, float, float]:
    asked = [thing.kind for thing in scene.things]
    rim = ground(image)
    difference = image.float() - rim[:, None, None]
    parts = [difference] if len(asked) == 1 else halves(difference)
    known = templates(world, nearest_background(rim))
    fit = torch.stack([fits(part, known) for part in parts])  # (parts, templates)
    names = world.kind_names
    best = torch.stack([fit[:, known.kinds == k].amax(1) for k in range(len(names))], 1)
    found = [names[int(row.argmax())] for row in best]
    order = likeliest_order(best, [names.index(kind) for kind in asked])  # left and right
    energies = []
    for part, kind in enumerate(order):
        own = torch.where(known.kinds == kind, fit[part], fit.new_tensor(-2.0)).argmax()
        energies.append(float(_energy(_box(parts[part])) / _energy(known.boxes[own])))
    return sorted(found) == sorted(asked), _worst(best, order), sum(energies) / len(energies)


def likeliest_order(best: Tensor, kinds: list[int]) -> tuple[int, ...]:
    """The kinds asked for, a part each, so that the worst of the fits is the best."""
    return max(permutations(kinds), key=lambda order: _worst(best, order))


def _worst(best: Tensor, kinds: tuple[int, ...]) -> float:
    """The fit of the part that fits least, with one kind a part."""
    return min(float(best[part, kind]) for part, kind in enumerate(kinds))


def ground(image: Tensor) -> Tensor:
    """The median colour of the rim (3,)."""
    rim = torch.cat(
        [
            image[:, :RIM].flatten(1),
            image[:, -RIM:].flatten(1),
            image[:, :, :RIM].flatten(1),
            image[:, :, -RIM:].flatten(1),
        ],
        dim=1,
    )
    return rim.float().median(1).values


def nearest_background(ground: Tensor) -> str:
    """The background whose colour is nearest."""
    colours = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    return list(BACKGROUNDS)[int((colours - ground.cpu()).square().sum(1).argmin())]


def halves(difference: Tensor) -> list[Tensor]:
    """Two things part at the emptiest column near the middle; the rest of each half is ground."""
    ink = difference.abs().amax(0).sum(0)
    column = min(GAP, key=lambda c: (float(ink[c]), abs(c - SIZE // 2)))
    left, right = difference.clone(), difference.clone()
    left[:, :, column:], right[:, :, :column] = 0, 0
    return [left, right]


def box(difference: Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a picture minus its ground; of all where none differs."""
    mask = (difference.abs().amax(0) > DIFFERS).float()
    mask = F.avg_pool2d(mask[None, None], 3, 1, 1)[0, 0] > 0.5  # lone pixels are no foreground
    mask[:RIM], mask[-RIM:], mask[:, :RIM], mask[:, -RIM:] = False, False, False, False
    rows, columns = (mask.sum(1) >= INK).nonzero(), (mask.sum(0) >= INK).nonzero()
    if not (len(rows) and len(columns)):
        return 0, difference.shape[1], 0, difference.shape[2]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _box(difference: Tensor) -> Tensor:
    """The foreground (3, SIDE, SIDE) of a picture minus its ground."""
    top, bottom, left, right = box(difference)
    return F.interpolate(
        difference[None, :, top:bottom, left:right],
        (SIDE, SIDE),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0]


def _energy(box: Tensor) -> Tensor:
    return box.diff(dim=-1).square().mean() + box.diff(dim=-2).square().mean()


def _normal(boxes: Tensor) -> Tensor:
    """(N, 3, SIDE, SIDE) -> (N, D) of mean 0 and length 1."""
    flat = boxes.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


@dataclass(frozen=True)
class Templates:
    """``boxes`` (N, 3, SIDE, SIDE) of ``things``, ``normal`` (N, D), and each one's kind (N,)."""

    things: tuple[Thing, ...]
    extents: Tensor  #: (N, 2), height and width of the boxes, pixels
    boxes: Tensor
    normal: Tensor
    kinds: Tensor


def fits(difference: Tensor, templates: Templates) -> Tensor:
    return templates.normal @ _normal(_box(difference)[None])[0]


@lru_cache(maxsize=16)
def templates(world: World, background: str) -> Templates:
    """Every glyph of the world, mirrored and tilted, on a background's mean colour."""
    things, extents, boxes, kinds = [], [], [], []
    colour = BACKGROUNDS[background]
    flat = torch.tensor(colour)[:, None, None] / 127.5 - 1
    for index, kind in enumerate(world.kind_names):
        for glyph in KINDS[kind]:
            for mirror in (False, True):
                for tilt in TILTS:
                    thing = Thing(kind, glyph, SIZE / 2, SIZE / 2, 88, tilt, mirror)
                    scene = Scene((thing,), background, colour, "")
                    drawn = to_unit(render([scene]))[0]
                    top, bottom, left, right = box(drawn - flat)
                    things.append(thing)
                    extents.append((bottom - top, right - left))
                    boxes.append(_box(drawn - flat))
                    kinds.append(index)
    stacked = torch.stack(boxes)
    return Templates(
        tuple(things), torch.tensor(extents), stacked, _normal(stacked), torch.tensor(kinds)
    )
