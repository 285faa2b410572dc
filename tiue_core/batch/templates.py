"""`{column}` in prompts, and names of files: from a template, safe on every file system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath

NAME = "{index}_{slug}_{seed}"
_DIGITS = 6  # of {index}: names of up to a million pictures sort as they are numbered
_PART_BYTES = 180  # of a part of a path; file systems stop at 255, and a suffix follows
_PARTS = 8  # folders in folders
_PLACE = re.compile(r"\{([^\W\d][^{}|:$]*?)(?::0?(\d{1,2}))?\}")
_COLUMN = re.compile(r"\{([^\W\d][^{}|:$]{0,63})\}")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.I)


class BadName(ValueError):
    """What is wrong with a name, in one line."""


def fill(text: str, columns: Mapping[str, str], unusable: Mapping[str, str] | None = None) -> str:
    """`text` with each `{column}` of the row filled in, once; other braces stay for wildcards.

    Raises:
        BadName: a column that is not there, while others are, or that holds no text.
    """

    def place(match: re.Match[str]) -> str:
        name = column_name(match[1])
        if name in columns:
            return columns[name]
        if unusable and name in unusable:
            raise BadName(f"{match[0]}: {unusable[name]}")
        if not columns or text[: match.start()][-1:] in ("$", "%", "\\"):
            return match[0]
        near = get_close_matches(name, columns, 1, 0.5)
        there = f"did you mean {{{near[0]}}}?" if near else f"there is {', '.join(columns)}."
        raise BadName(f"{match[0]} is no column: {there} For the sign itself write \\{{")

    return _COLUMN.sub(place, text)


def column_name(column: str) -> str:
    """A column's name in braces and in a header: case, blanks and dashes are forgiven."""
    return "_".join(column.strip().casefold().replace("-", "_").split())


def file_name(template: str, values: Mapping[str, str | int]) -> PurePosixPath:
    """A relative path without suffix: folders by "/", each part made safe and short.

    Raises:
        BadName: a field that is not there, or a path that leads elsewhere.
    """

    def place(match: re.Match[str]) -> str:
        name, digits = column_name(match[1]), match[2]
        if name not in values:
            raise BadName(f"{{{name}}} is no column: use one of {', '.join(sorted(values))}")
        value = values[name]
        if isinstance(value, int):
            return f"{value:0{digits or (_DIGITS if name == 'index' else 1)}d}"
        return value.replace("/", "-").replace("\\", "-")  # a value is never a path

    check_path(template)
    parts = [safe(part) for part in _PLACE.sub(place, template).split("/") if part.strip(" .")]
    if len(parts) > _PARTS:
        raise BadName(f"{len(parts)} folders deep: use at most {_PARTS}")
    return PurePosixPath(*(parts or ["image"]))


def check_path(template: str) -> None:
    """Refuse what leads out of the folder, before it is made safe and means something else.

    Raises:
        BadName: an absolute path, a drive, a backslash, or "..".
    """
    parts = template.split("/")
    if template.startswith(("/", "~")) or re.match(r"[A-Za-z]:", template) or "\\" in template:
        raise BadName("it is a path of its own: give a name, with / between folders")
    if any(part.strip() == ".." for part in parts):
        raise BadName("'..' leads out of the folder: leave it out")


def safe(part: str) -> str:
    """One part of a path, as every file system takes it: Windows is the strictest.

    >>> safe('con'), safe('a:b?'), safe(' x. ')
    ('_con', 'a-b-', 'x')
    """
    text = unicodedata.normalize("NFC", part)
    text = "".join("-" if char in '<>:"/\\|?*' or not char.isprintable() else char for char in text)
    text = text.encode("utf-8", "ignore")[:_PART_BYTES].decode("utf-8", "ignore").strip(" .")
    if _RESERVED.match(text):
        text = "_" + text
    if text.startswith("-"):
        text = "_" + text  # not an option of whatever reads it
    return text or "image"
