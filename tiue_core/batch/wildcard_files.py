"""Wildcard files: `name.txt`, a value a line, and collections in YAML and JSON.

What cannot be read is left out line by line and told, by file and line; the rest of its file stays.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from ..errors import TiueError
from .lists import encoding_of

_COMMENT = re.compile(r"(?:^|(?<=\s))(?:#|//)(?:\s.*)?$|^(?:#|//).*$|/\*.*?\*/", re.M)
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*::")
_UNQUOTED = re.compile(r"^(\s*-\s+)([{\[@`%*&!|>].*?|[^'\"#].*?:\s.*?)\s*$")
_SUFFIXES = (".txt", ".yaml", ".yml", ".json")
_BROKEN = 50  # lines of a YAML file that are left out before the file is given up
_TRIES = 16  # draws of a line before those left are looked at
_NODES = 1_000_000  # of a YAML file with its aliases written out
_NO_TEXT = "not UTF-8: save the file as UTF-8"


@dataclass(frozen=True)
class Value:
    """What a wildcard can become, and where that is written."""

    text: str
    weight: float = 1.0
    place: str = ""


@dataclass
class Values:
    """All that a wildcard can become: sorted, and each text once."""

    items: list[Value]
    problems: list[str] = field(default_factory=list)
    there: bool = True  # a file of that name, whatever is in it

    @cached_property
    def bounds(self) -> list[float]:
        return list(accumulate(value.weight for value in self.items))

    def drawn(self, random: Random) -> Iterator[Value]:
        """All of them, one by one by their weights, none twice."""
        seen: set[int] = set()
        while len(seen) < len(self.items):
            for _ in range(_TRIES):  # all but always one; a few of a long file stay cheap
                place = bisect(self.bounds, random.random() * self.bounds[-1])
                if place < len(self.items) and place not in seen:
                    break
            else:
                rest = [place for place in range(len(self.items)) if place not in seen]
                (place,) = random.choices(rest, [self.items[one].weight for one in rest])
            seen.add(place)
            yield self.items[place]


class Collections:
    """The wildcard files below a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise TiueError(f"{folder} is no folder of wildcard files: check --wildcards")
        self.folder = folder
        self.problems: list[str] = []  # of files that cannot be read at all
        self._values: dict[str, Values] = {}
        self._files: dict[str, Path | Values] = {}
        root = folder.resolve()
        for path in sorted(folder.rglob("*")):
            suffix = path.suffix.lower()
            inner = path.relative_to(folder)
            if suffix not in _SUFFIXES or any(part.startswith(".") for part in inner.parts):
                continue
            if not path.is_file() or not path.resolve().is_relative_to(root):
                continue
            if suffix == ".txt":
                self._files[inner.with_suffix("").as_posix()] = path
            else:
                self._files.update(self._structured(path, inner))

    def names(self) -> list[str]:
        return sorted(self._files)

    def get(self, name: str) -> Values:
        """The values of all files that a name, or a pattern such as `colours/*`, stands for."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self._match(name)
        return found

    def _match(self, name: str) -> Values:
        wanted = re.sub(r"[\\/]+", "/", name).strip("/")
        exact = self._files.get(wanted)
        matches = [exact] if exact is not None else []
        for pattern in (wanted, f"**/{wanted}") if not matches else ():
            matches = [one for key, one in self._files.items() if fnmatch(key, pattern)]
            if matches:
                break
        parts = [_text_file(one) if isinstance(one, Path) else one for one in matches]
        unique = {value.text: value for part in parts for value in part.items}
        items = sorted(unique.values(), key=lambda value: value.text)
        problems = [problem for part in parts for problem in part.problems]
        return Values(items, problems, there=bool(matches))

    def _structured(self, path: Path, inner: Path) -> Iterator[tuple[str, Values]]:
        text, problems = _read(path)
        try:
            if path.suffix.lower() == ".json":
                tree: Any = _Plain.of(json.loads(text))
            else:
                tree = _compose(text, path.name, problems)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{path.name}: {error}")
            return
        self.problems += problems
        prefix = inner.parent.as_posix().removeprefix(".").strip("/")
        flat = tree is not None and tree.kind == "list"
        yield from _walk(tree, path.name, [prefix, inner.stem] if flat else [prefix])


def _text_file(path: Path) -> Values:
    text, problems = _read(path)
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        value = _value(line, f"{path.name}:{number}")
        if value is None:
            continue
        if "\ufffd" in value.text or "\0" in value.text:
            problems.append(f"{value.place}: {_NO_TEXT}")
        else:
            items.append(value)
    return Values(items, problems)


def _read(path: Path) -> tuple[str, list[str]]:
    """A file as text with plain line ends; what is no text is U+FFFD there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return "", [f"{path.name}: it cannot be read ({error.strerror})"]
    text = data.decode(encoding_of(data), errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n"), []


def _value(text: str, place: str, weight: float = 1.0) -> Value | None:
    """A value without its comment; `3::fox` weighs three times as much as `fox`."""
    text = _COMMENT.sub("", text).strip()
    weighed = _WEIGHT.match(text)
    if weighed:
        text, weight = text[weighed.end() :].strip(), float(weighed[1])
    return Value(text, weight, place) if text and weight > 0 else None


# --- YAML and JSON -------------------------------------------------------------------------


@dataclass
class _Plain:
    """A node of either: what kind of thing, its content, and its line (0: unknown)."""

    kind: str
    content: Any
    line: int = 0

    @classmethod
    def of(cls, value: Any) -> _Plain:
        if isinstance(value, dict):
            return cls("table", [(str(key), cls.of(inner)) for key, inner in value.items()])
        if isinstance(value, list):
            return cls("list", [cls.of(inner) for inner in value])
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return cls("text", "" if value is None else text)


def _compose(text: str, name: str, problems: list[str]) -> _Plain | None:
    """YAML's tree. Tabs and unquoted values are read as they were meant; lines that are no YAML
    are left out, and told in `problems`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines = re.sub(r"(?m)^[ \t]*\t[ \t]*", lambda m: m[0].expandtabs(2), text).split("\n")
    for attempt in range(_BROKEN):
        source = "\n".join(lines)
        try:
            node = yaml.compose(source, Loader=loader)
            return None if node is None else _plain(node, source, [_NODES])
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            if attempt == 0 and mark is not None:  # `- {a|b} fox` and the like want quotes
                lines = [_UNQUOTED.sub(_quoted, line) for line in lines]
                continue
            if mark is None or not any(line.strip() for line in lines):
                raise ValueError(str(getattr(error, "reason", error)).splitlines()[0]) from None
            bad = min(mark.line, len(lines) - 1)
            while bad and not lines[bad].strip():
                bad -= 1
            why = getattr(error, "problem", None) or "no YAML"
            problems.append(f"{name}:{bad + 1}: {why}: put the value in quotes")
            lines[bad] = ""
    raise ValueError(f"more than {_BROKEN} lines of it are no YAML")


def _quoted(found: re.Match[str]) -> str:
    if re.match(r"(\{\s*['\"]?(text|content|weight)['\"]?\s*:)|[|>][+-]?$", found[2]):
        return found[0]  # a table of a value and its weight, or a text of several lines
    if re.match(r"(text|content|weight):\s", found[2]):
        return found[0]
    return found[1] + "'" + found[2].replace("'", "''") + "'"


def _plain(node: Any, source: str, left: list[int]) -> _Plain:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("it is too large with its aliases written out")
    line = node.start_mark.line + 1
    if node.id == "mapping":
        pairs = [(key.value, inner) for key, inner in node.value if key.id == "scalar"]
        if node.flow_style and all(inner.value == "" for _, inner in pairs):  # `- {red|blue}`
            return _Plain("text", source[node.start_mark.index : node.end_mark.index], line)
        return _Plain("table", [(key, _plain(inner, source, left)) for key, inner in pairs], line)
    if node.id == "sequence":
        return _Plain("list", [_plain(inner, source, left) for inner in node.value], line)
    null = node.tag.endswith(":null") and node.style is None
    return _Plain("text", "" if null else node.value, line)


def _walk(node: _Plain | None, file: str, path: list[str]) -> Iterator[tuple[str, Values]]:
    if node is None:
        return
    if node.kind == "table":
        for key, inner in node.content:
            yield from _walk(inner, file, [*path, key])
        return
    items = node.content if node.kind == "list" else [node]
    found = [value for item in items if (value := _item(item, file)) is not None]
    if found:
        yield "/".join(part for part in path if part), Values(found)


def _item(node: _Plain, file: str) -> Value | None:
    place = f"{file}:{node.line}" if node.line else file
    if node.kind == "text":
        return _value(node.content, place)
    if node.kind == "table":
        table = {key: inner.content for key, inner in node.content if inner.kind == "text"}
        text = table.get("text") or table.get("content") or ""
        try:
            return _value(text, place, float(table.get("weight", 1)))
        except ValueError:
            return _value(text, place)
    return None
