"""What a graph says about itself: one JSON object, in ONNX's metadata and in a .pt2's extra files.

Read by ``runtime.py`` and written into the page's ``student.json``, so it holds all that is needed
besides tensors: who the student is and under which licence, K, timesteps, sizes. The tokenizer lies
beside it, as the text of a ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError

FORMAT = 1  # raised when an older reader could misunderstand a newer graph
ABOUT, TOKENIZER = "tiue", "tokenizer.json"
SET = "student"  #: the name of a set of parts: student.json, student.encoder.onnx, ...
PARTS = ("text_encoder", "encoder", "decoder", "vae")

_NEEDED: dict[str, type] = {  # of a whole student, to paint with it
    **dict.fromkeys(("channels", "factor", "height", "width"), int),
    **dict.fromkeys(("smallest", "largest", "multiple"), int),
    "dynamic_size": bool,
    "dtype": str,
}

RECORD = ("student", "student_revision", "student_hash", "steps", "decoders", "timesteps", "loras")
"""What a picture's metadata takes over from its graph."""


def read(path: Path, stored: Mapping[str, str]) -> dict[str, Any]:
    """The description out of a graph's metadata, checked.

    Raises:
        TiueError: no description, or one of another format.
    """
    try:
        about = json.loads(stored.get(ABOUT, ""))
        found = about["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TiueError(
            f"{path} does not say which student it is: give a graph made by `tiue export`"
        ) from None
    if found != FORMAT:
        raise TiueError(
            f"{path} has format {found!r} and this tiue reads {FORMAT}: export the student again, "
            "or update tiue"
        )
    if not about.get("whole", False):
        raise TiueError(f"{path} is a part of a student: give the graph of the whole")
    wrong = [name for name, kind in _NEEDED.items() if not isinstance(about.get(name), kind)]
    if wrong or TOKENIZER not in stored:
        raise TiueError(
            f"{path} has a damaged description ({', '.join(wrong) or TOKENIZER}): export the "
            "student again"
        )
    return about


def read_set(folder: Path) -> tuple[dict[str, Any], str]:
    """The description of a folder of parts, and its tokenizer; every file as long as it was.

    Raises:
        TiueError: a part is missing or cut off, or it is of another format.
    """
    try:
        about = json.loads((folder / f"{SET}.json").read_text(encoding="utf-8"))
        tokenizer = (folder / f"{SET}.{TOKENIZER}").read_text(encoding="utf-8")
        whole = all((folder / name).stat().st_size == n for name, n in about["files"].items())
        good = about["format"] == FORMAT and whole and len(about["files"]) >= len(PARTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good or any(not isinstance(about.get(name), kind) for name, kind in _NEEDED.items()):
        raise TiueError(f"the graphs in {folder} are damaged or of another version: make them anew")
    return about, tokenizer


def check_size(about: Mapping[str, Any], width: int | None, height: int | None) -> tuple[int, int]:
    """(height, width) in pixels that the graph takes, its own where none is asked for.

    Raises:
        TiueError: a size that the graph was not made for.
    """
    own = about["height"], about["width"]
    asked = height or own[0], width or own[1]
    low, high, step = about["smallest"], about["largest"], about["multiple"]
    if about["dynamic_size"]:
        if any(side % step or not low <= side <= high for side in asked):
            raise TiueError(
                f"this graph takes sides from {low} to {high} in steps of {step} pixels, not "
                f"{asked[1]} x {asked[0]}"
            )
    elif asked != own:
        raise TiueError(
            f"this graph paints {own[1]} x {own[0]} pixels only, not {asked[1]} x {asked[0]}: "
            "export the student with --dynamic-size"
        )
    return asked
