"""One job is one picture: its id is the hash of all that decides it, its file's name a template's,
safe on every file system."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from .. import __version__
from .schema import column_name

NAME = "{index}_{slug}_{seed}"
_DIGITS = 6  # of {index}: names of up to a million pictures sort as they are numbered
_PART_BYTES = 180  # of a part of a path; file systems stop at 255, and a suffix follows
_PARTS = 8  # folders in folders
_PLACE = re.compile(r"\{([^\W\d][^{}|:$]*?)(?::0?(\d{1,2}))?\}")
_COLUMN = re.compile(r"\{([^\W\d][^{}|:$]{0,63})\}")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.I)


@dataclass(frozen=True)
class Settings:
    """What all jobs of a run share, as far as it decides the picture."""

    student: str
    student_hash: str  # weights and scheduler config: see students.Source.content_hash
    timesteps: tuple[int, ...]  # K of them
    width: int  # the student's own, where a row names none
    height: int
    dtype: str = "float32"
    steps: int | None = None  # K as asked for
    revision: str | None = None
    vae: str = ""  # a VAE other than the student's own
    factor: int = 8  # px per latent
    base: str = ""  # the name of what completes a single file


@dataclass(frozen=True)
class Job:
    """One picture. `id` is over what decides it; the rest says where it goes and whence it came."""

    id: str
    prompt: str
    negative: str
    seed: int
    width: int
    height: int
    loras: tuple[tuple[str, float, str], ...]  # (path, strength, SHA-256)
    decoders: str
    file: str  # relative, with "/", without suffix
    index: int  # of the picture in the list
    line: int
    template: str = ""  # the prompt before wildcards, where it had some
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def group(self) -> tuple[Any, ...]:
        """What must be equal within a batch."""
        return (self.width, self.height, self.loras, self.decoders)

    def record(self) -> dict[str, Any]:
        """What a job itself has to say in a picture's metadata."""
        loras = [
            {"name": Path(path).stem, "strength": strength, "hash": digest}
            for path, strength, digest in self.loras
        ]
        extra = {"template": self.template, "negative": self.negative, "columns": self.columns}
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "loras": loras,
            "decoders": self.decoders,
            "job": self.id,
            "version": __version__,
            **{name: value for name, value in extra.items() if value},
        }


def job_id(settings: Settings, **decides: Any) -> str:
    """SHA-256, the first 128 bits as hex, over everything that decides the picture."""
    shared = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name in ("student", "revision", "width", "height", "steps", "factor", "base"):
        del shared[name]  # names, or told by the job itself
    text = json.dumps({**shared, **decides}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- names of files, and columns in prompts ------------------------------------------------


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


def file_name(template: str, values: Mapping[str, str | int]) -> PurePosixPath:
    """A relative path without suffix: folders by "/", each part made safe and short.

    Raises:
        BadName: a field that is not there, or a path that leads elsewhere.
    """

    def place(match: re.Match[str]) -> str:
        name, digits = match[1] if match[1] in values else column_name(match[1]), match[2]
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
