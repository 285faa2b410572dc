"""Reading prompt lists: txt, CSV, JSONL, YAML. One row at a time, whatever their length.

A bad row is reported and the next one is read. Where the rest of a file cannot be understood (YAML
that stops being YAML), that is reported as one bad row at the line where it happens.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import file_hash
from .limits import END, tick
from .lists_csv import read_csv
from .lists_yaml import read_yaml
from .rows import Raw, Unreadable, as_row
from .schema import KNOWN, BadRow, Placed, check_row, known_name, prompt_column, shown

Rows = Iterator[Placed | BadRow]

# Options that A1111's "prompts from file" knows and a one-pass student has no use for.
FOREIGN = frozenset(
    [
        *("sd_model", "outpath_samples", "outpath_grids", "prompt_for_display", "styles"),
        *("subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w"),
        *("sampler_index", "sampler_name", "batch_size", "steps", "cfg_scale", "restore_faces"),
        *("tiling", "do_not_save_samples", "do_not_save_grid"),
    ]
)
# Of kohya's sample prompts and of Midjourney: what they mean here, and what means nothing here.
SHORT = {"n": "negative", "w": "width", "h": "height", "d": "seed", "no": "negative"}
PASSED = frozenset(["l", "s", "g"])  # guidance and steps, as `FOREIGN`
REFUSED = frozenset(
    [
        *("ar", "aspect", "v", "version", "niji", "stylize", "q", "quality", "chaos", "weird"),
        *("style", "sref", "cref", "iw", "tile", "stop", "repeat", "raw", "exp", "cn", "am", "fs"),
        *("sw", "cw", "ow", "oref", "p", "profile", "fast", "turbo", "relax", "draft", "hd", "sv"),
        *("video", "motion", "loop", "stealth", "public", "uplight", "upbeta", "test", "testp"),
    ]
)
LINE_LIMIT = 1 << 20  # characters
SUFFIXES = {"yml": "yaml", "ndjson": "jsonl", "tsv": "csv"}  # other names of readers


def read_list(path: Path, *, kind: str | None = None, encoding: str | None = None) -> Rows:
    """The rows of a file, read as they are asked for.

    Args:
        kind: "txt", "csv", "jsonl" or "yaml"; default: by the file's suffix.
        encoding: default: UTF-8, or UTF-16 where the file says so in its first bytes.

    Raises:
        TiueError: no such file, or not a list by its suffix or encoding.
    """
    kind = kind_of(path, kind)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise _no_file(path, error) from None
    encoding = encoding or encoding_of(start)
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise TiueError(f"no encoding '{encoding}': try utf-8, utf-16 or cp1252") from None

    def rows() -> Rows:
        line = 0
        try:
            # surrogateescape keeps undecodable bytes visible, so that one bad row stays one
            with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
                for row in read_rows(file, kind, path.name):
                    line = row.line
                    yield row
        except OSError as error:
            raise _no_file(path, error) from None
        except UnicodeError:  # codecs that know no escape
            why = f"the list is not {encoding} from here on: save it as UTF-8"
            yield BadRow(path.name, line + 1, "", why)

    return rows()


def encoding_of(data: bytes) -> str:
    """UTF-8, or UTF-16 where the first bytes say so."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if utf16 else "utf-8-sig"


def once(path: Path, encoding: str | None = None) -> Path | str:
    """The path of a list, or its text where it can be read only once (a pipe; `-` is the one that
    the command itself reads from).

    Raises:
        TiueError: a pipe that holds no text in this encoding.
    """
    pipe = str(path) == "-"
    if not pipe and (path.is_file() or path.is_dir() or not path.exists()):
        return path
    try:
        data = sys.stdin.buffer.read() if pipe else path.read_bytes()
        return data.decode(encoding or encoding_of(data))
    except OSError as error:
        raise _no_file(path, error) from None
    except (UnicodeError, LookupError):
        raise TiueError("what the pipe holds is no text: give --encoding") from None


def read_text(text: str, kind: str = "txt", name: str = "list") -> Rows:
    """The rows of a text, as typed into an editor."""
    return read_rows(io.StringIO(text, newline=""), kind_of(Path(name), kind), name)


def read_rows(file: Iterable[str], kind: str, name: str) -> Rows:
    """Rows from an open text file (newlines kept as they are)."""
    lines, first = iter(file) if END.get() is None else _ticking(file), ""
    if kind == "txt":  # a spreadsheet's "Unicode text" is a table with tabs
        first = next(lines, "")
        names = [known_name(cell.strip(' "')) for cell in first.split("\t")]
        kind = "csv" if len(names) > 1 and prompt_column(names) else kind
    number = -1
    for number, (line, raw) in enumerate(_READERS[kind](chain([first] if first else [], lines))):
        if isinstance(raw, Unreadable):
            yield BadRow(name, line, raw.column, str(raw))
            continue
        row = check_row(raw, name, line, number)
        yield _without_options(row) if kind != "txt" and isinstance(row, Placed) else row
    if number < 0:
        yield BadRow(name, 1, "", "there is no row in this list: write a prompt")


def _ticking(file: Iterable[str]) -> Iterator[str]:
    for line in file:
        tick()
        yield line


def kind_of(path: Path, kind: str | None = None) -> str:
    """A reader's name from what was asked for, or from the suffix."""
    wanted = (kind or path.suffix.removeprefix(".")).lower()
    wanted = SUFFIXES.get(wanted, wanted)
    if wanted not in _READERS:
        raise TiueError(f"{path} is no prompt list: use .txt, .csv, .jsonl or .yaml, or --read-as")
    return wanted


def list_hash(path: Path) -> str:
    """SHA-256 of a list, to tell whether it has changed."""
    try:
        return file_hash(path)
    except OSError as error:
        raise _no_file(path, error) from None


def _no_file(path: Path, error: OSError) -> TiueError:
    if isinstance(error, FileNotFoundError):
        return TiueError(f"{path} does not exist: check the path")
    if isinstance(error, IsADirectoryError):
        return TiueError(f"{path} is a folder: give a prompt list")
    return TiueError(f"{path} cannot be read ({error.strerror}): check the file")


# --- txt -----------------------------------------------------------------------------------


def _txt(file: Iterable[str]) -> Raw:
    for number, line in enumerate(file, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            yield number, _options(text)
        except Unreadable as why:
            yield number, why


_NAMES = "|".join(
    [*KNOWN, "negative_prompt", "n_iter", *sorted(FOREIGN), *SHORT, *sorted(PASSED | REFUSED)]
).replace("_", "[-_]")
# Two dashes, or what a phone makes of them.
_OPTION = re.compile(rf"(?:^|(?<=\s))(?:--|[\u2013\u2014])(?=(?:{_NAMES})(?=[\s=]|$))", re.I)
_INFOTEXT = re.compile(r"(Negative prompt: |Steps: \d+, \w)")


def _options(text: str) -> dict[str, Any]:
    """`--prompt a cat --seed 3`, or `a cat --seed=3`, or just `a cat`."""
    if _INFOTEXT.match(text):
        raise Unreadable("this is what a picture says of itself: give --negative, --seed instead")
    found = _OPTION.search(text)
    if found is None and not text.startswith("--"):
        return {"prompt": text}
    prompt, tail = (text[: found.start()], text[found.start() :]) if found else ("", text)
    lexer = shlex.shlex(_OPTION.sub("--", tail), posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.quotes = True, "", '"'
    try:
        words = list(lexer)
    except ValueError:
        raise Unreadable("a quote is not closed: close it, or leave it out") from None
    row: dict[str, Any] = {"prompt": prompt.strip()} if prompt.strip() else {}
    name = "prompt"
    for word in words:
        if word.startswith("--") and len(word) > 2 and " " not in word.partition("=")[0]:
            said, _, value = word[2:].partition("=")
            name = known_name(said)
            name = SHORT.get(name, name)
            _check_option(name, f"--{said}")
            if name in row:
                raise Unreadable("the option is there twice: keep one of them", name)
            row[name] = value
        else:
            row[name] = f"{row.get(name, '')} {word}".strip()
    return {name: value for name, value in row.items() if name not in FOREIGN | PASSED}


def _check_option(name: str, word: str) -> None:
    if name in REFUSED:
        why = "give --width and --height" if name in ("ar", "aspect") else "leave it out"
        raise Unreadable(f"{shown(word)} is another program's option: {why}")
    if name not in KNOWN and name not in FOREIGN | PASSED:
        allowed = ", ".join("--" + known for known in KNOWN)
        raise Unreadable(f"{shown(word)} is no option: use {allowed}")


def _without_options(placed: Placed) -> Placed | BadRow:
    """A row of a table, whose prompt may not hold options: they would be painted as words."""
    found = _OPTION.search(placed.row.prompt)
    if found is None:
        return placed
    word = placed.row.prompt[found.start() :].split()[0]
    why = f"{shown(word)} is an option of programs: give it as a column, or leave it out"
    return BadRow(placed.file, placed.line, "prompt", why)


# --- jsonl ---------------------------------------------------------------------------------


def _jsonl(file: Iterable[str]) -> Raw:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            if len(line) > LINE_LIMIT:
                raise ValueError(f"the line has {len(line)} characters")
            row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_table)
        except (ValueError, RecursionError) as error:
            why = str(error).partition(":")[0] or "too deeply nested"
            yield number, Unreadable(f"this line is no JSON ({why}): give one object per line")
            continue
        yield number, as_row(row)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is there twice")
    return table


_READERS: dict[str, Callable[[Iterable[str]], Raw]] = {
    "txt": _txt,
    "csv": read_csv,
    "jsonl": _jsonl,
    "yaml": read_yaml,
}
KINDS = tuple(_READERS)
