"""What the readers of prompt lists have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .schema import shown

Raw = Iterator[tuple[int, Any]]
"""Line, and the row as found there: a table, or an `Unreadable`."""


class Unreadable(Exception):
    """What is wrong with a row, as found while reading."""

    def __init__(self, message: str, column: str = "") -> None:
        super().__init__(message)
        self.column = column


def as_row(row: Any) -> Any:
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, dict):
        return Unreadable(f"{shown(row)} is no row: give a text, or a table with a prompt")
    return row
