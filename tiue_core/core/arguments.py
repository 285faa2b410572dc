"""What ``TiuePipeline`` is called with, checked and in one form; bad input is one line."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from numbers import Integral
from typing import Any

SEEDS = 2**64  # what torch.Generator tells apart
DECODERS = ("exact", "fast")
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,24}(\.0*)?\s*").fullmatch
GUIDED = 2.0  # the guidance where only a negative prompt is given


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``, or one line that says which there are."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: give one of {', '.join(choices)}")
    return value


def whole_number(value: Any) -> int | None:
    """The int that a value is or spells, as forms and files have them: 3, 3.0, "3", "+3.0"."""
    if isinstance(value, str) and _WHOLE(value):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int within [low, high), or one line that says what to give."""
    number = None if isinstance(value, str | float) else whole_number(value)
    if number is None or number < low or (high is not None and number >= high):
        upto = "" if high is None else f" to {high - 1}"
        raise ValueError(f"{name} is {value!r}: give a whole number from {low}{upto}")
    return number


def both_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a config's ``sample_size``, which is both of them or one for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def latent_side(name: str, pixels: int, factor: int) -> int:
    """A picture's side in latents of ``factor`` px, or one line that says what to give."""
    if pixels % factor:
        near = max(round(pixels / factor), 1) * factor
        raise ValueError(f"{name} is {pixels}: give a multiple of {factor}, such as {near}")
    return pixels // factor


def texts_of(name: str, given: Any) -> list[str]:
    """A prompt or a list of them, each on one line with single spaces."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} is {given!r}: give a text or a list of texts")
    return [" ".join(text.split()) for text in texts]


def seeds_of(seed: Any, total: int) -> list[int]:
    """One seed per image."""
    if seed is None:
        seed = secrets.randbits(32)
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != total:
            raise ValueError(
                f"{len(seed)} seeds for {total} images: give one each, or a single one"
            )
        return [whole("seed", one, 0, SEEDS) for one in seed]
    first = whole("seed", seed, 0, SEEDS - total + 1)
    return list(range(first, first + total))
