"""The scene that words and a noise stand for: the words say what, fifteen numbers of the noise how.

    score_i = <noise, wave_i>                        N(0, 1) each: the waves are orthonormal
    u_i     = (1 + erf(score_i / sqrt 2)) / 2        uniform in [0, 1]
    pose    = place, size, tilt, glyph, mirror and shade, each from one u over all the world draws

So noises drawn at random stand for scenes as the world draws them, and one noise for one scene.
The waves are the smoothest there are, at most half a period along either side: what a network
reads first. With this a one-pass student can be taught by the drawn world itself: nothing is left
to guess from the noise, and so nothing is smeared over its guesses (``train/tasks/drawn.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from .world import BACKGROUNDS, KINDS, SHADE, TILT, Scene, Thing, places, sizes

#: Channel, half periods down and across, of each score: six of the first thing (x, y, size, tilt,
#: glyph, mirror), six of a second one, and red, green and blue of the shade.
WAVES = (
    (0, 0, 1), (0, 1, 0), (0, 0, 0), (0, 1, 1), (1, 0, 0), (2, 0, 0),
    (1, 0, 1), (1, 1, 0), (3, 0, 0), (1, 1, 1), (2, 0, 1), (2, 1, 0),
    (2, 1, 1), (3, 0, 1), (3, 1, 0),
)  # fmt: skip
EACH = 6  #: scores of one thing
SCORES = len(WAVES)


def scores(noise: Tensor) -> Tensor:
    """Noise (B, C, h, w) of at least four channels -> the scores (B, SCORES), N(0, 1) each."""
    return torch.einsum("bchw,schw->bs", noise.float(), waves(*noise.shape[1:]).to(noise.device))


@lru_cache(maxsize=8)
def waves(channels: int, height: int, width: int) -> Tensor:
    """The waves (SCORES, C, h, w), orthonormal."""
    down, across = _cosines(height), _cosines(width)
    made = torch.zeros(SCORES, channels, height, width)
    for wave, (channel, i, j) in zip(made, WAVES, strict=True):
        wave[channel] = torch.outer(down[i], across[j])
    return made


def _cosines(length: int) -> Tensor:
    """Of no and of half a period (DCT-II), each of norm one."""
    turns = torch.arange(2)[:, None] * (torch.arange(length) + 0.5) * (math.pi / length)
    return torch.nn.functional.normalize(turns.cos(), dim=1)


def told(scene: Scene) -> list[bool]:
    """Which scores a scene of these words depends on: a second thing's only if there is one."""
    second = len(scene.things) == 2
    return [True] * EACH + [second] * EACH + [True] * (SCORES - 2 * EACH)


def posed(scene: Scene, said: Tensor, reach: float = 1.0) -> Scene:
    """The scene of the same words that these scores (SCORES,) stand for.

    Args:
        reach: share of the range of place, size and tilt around its middle that is used.
    """
    shares = [0.5 * (1 + math.erf(score / math.sqrt(2))) for score in said.tolist()]
    count = len(scene.things)
    things = tuple(
        _thing(thing.kind, shares[EACH * index : EACH * (index + 1)], (index, count), reach)
        for index, thing in enumerate(scene.things)
    )
    colour = tuple(
        min(255, max(0, channel + round(SHADE * (2 * share - 1))))
        for channel, share in zip(BACKGROUNDS[scene.background], shares[2 * EACH :], strict=True)
    )
    return replace(scene, things=things, colour=colour)  # type: ignore[arg-type]


def _thing(kind: str, shares: list[float], seat: tuple[int, int], reach: float) -> Thing:
    """One thing at its seat: (index, count) of a scene's."""
    x, y, size, tilt = (0.5 + reach * (share - 0.5) for share in shares[:4])
    glyph, mirror = shares[4:]

    def within(share: float, low: float, high: float) -> float:
        return low + share * (high - low)

    side = within(size, *sizes(seat[1]))
    columns, rows = places(side, *seat)
    glyphs = KINDS[kind]
    return Thing(
        kind,
        glyphs[min(int(glyph * len(glyphs)), len(glyphs) - 1)],
        within(x, *columns),
        within(y, *rows),
        side,
        within(tilt, -TILT, TILT),
        mirror < 0.5,
    )
