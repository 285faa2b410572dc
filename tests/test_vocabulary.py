"""What a student was not trained on is said, once, and painted all the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tiue_core import TiuePipeline
from tiue_core.students.vocabulary import Vocabulary, size_note


@pytest.fixture(scope="module")
def stickers() -> Any:
    return TiuePipeline.from_pretrained("stickers")


def said(pipe: Any, *args: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe(*args, seed=0, output_type="latent", **options)
    return [str(one.message) for one in caught if one.category is UserWarning]


def test_unknown_words_and_far_sizes_are_said_once(stickers: Any) -> None:
    assert said(stickers, "a cat on a blue background") == []
    (line,) = said(stickers, ["a dragon in space", "Eine Katze, cat"])
    assert "'dragon', 'in', 'space', 'eine', 'katze';" in line
    known = line.partition("it knows: ")[2].split(", ")
    assert {"cat", "rocket", "blue", "background"} <= set(known) and "a" not in known
    assert said(stickers, "a dragon") == []
    assert said(stickers, "a dragon and a quokka") == [
        "the student does not know the prompt's 'quokka'"
    ]
    (line,) = said(stickers, "a cat", width=256)
    assert "256 x 128 is far from the 128 x 128" in line
    assert said(stickers, "a cat", width=256) == [] and said(stickers, "a cat", width=160) == []


def test_the_folder_says_what_was_trained(tmp_path: Path) -> None:
    tokens = {"a</w>": 0, "cat</w>": 1, "dog</w>": 2, "on</w>": 3, "ca": 4}
    assert Vocabulary(tokens).words == {"cat", "dog", "on"}
    (tmp_path / "prompts.txt").write_text("a cat\non a cat\n")
    assert Vocabulary(tokens, tmp_path).unknown(["A Cat, a dog on 2 猫"]) == ["dog", "猫"]
    letters = {f"{letter}</w>": 0 for letter in "abcdefg"}
    assert Vocabulary(letters).unknown(["anything"]) == [], "a vocabulary of letters says nothing"
    clip = {f"{first}{second}{third}</w>": 0 for first in _AZ for second in _AZ for third in _AZ}
    assert Vocabulary(clip).unknown(["qqqq"]) == [], "nor does that of a whole language"


@pytest.mark.parametrize(
    ("size", "far"),
    [((128, 128), False), ((192, 128), False), ((200, 128), True), ((128, 80), True)],
)
def test_sizes(size: tuple[int, int], far: bool) -> None:
    assert bool(size_note(*size, (128, 128))) is far


_AZ = "abcdefghijklmnopqrstuvwxyz"
