"""What a row of a prompt list may say, and what is said about one that is not right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..core.arguments import DECODERS, SEEDS, whole_number

PROMPT_LIMIT = 10_000  # characters; text encoders read some 77 tokens
FREE_LIMIT = 1_000  # characters of a free column
COLUMN_LIMIT = 1_000  # columns of one row
COUNT_LIMIT = 100_000  # pictures of one row
LORA_LIMIT = 100  # LoRAs of one row
SIDE_LIMIT = 4096  # px
ALIASES = {"negative_prompt": "negative", "n_iter": "count", "loras": "lora"}
PROMPTS = ("prompt", "prompts", "text", "caption")  # names of the prompt, the first one there
_LORA = re.compile(r"<lora:[^<>]+>")
SPREADSHEET = frozenset(["#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!"])


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it is, and what is allowed there."""

    file: str
    line: int  # 1-based; of the row's first line
    column: str  # "" where the row as a whole is meant
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" + (f": {self.column}" if self.column else "")
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA by name, to be looked up in the folder of LoRAs."""

    name: str
    strength: float = 1.0


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("row", "{why}", {"why": message})


def shown(value: Any) -> str:
    """A value for a message: short, on one line, and never expanded (YAML can nest a lot)."""
    if isinstance(value, str):
        text = value if len(value) <= 40 else value[:40] + "..."
        return "'" + "".join(char if char.isprintable() else "?" for char in text) + "'"
    if isinstance(value, bool):
        return f"{str(value).lower()} (quote it to mean the word)"
    if isinstance(value, int | float) and abs(value) < 1e30:
        return str(value)
    kinds = {dict: "a table", list: "a list", type(None): "empty"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _text(value: Any, limit: int) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = shown(value)
    if not isinstance(value, str):
        raise _wrong(f"{shown(value)} where a text is wanted: give a text in quotes")
    if any("\ud800" <= char <= "\udfff" or char == "\N{REPLACEMENT CHARACTER}" for char in value):
        raise _wrong("the text is not UTF-8: save the list as UTF-8, or give --encoding")
    value = " ".join(value.split())
    if value in SPREADSHEET:
        raise _wrong(f"{value} is what a spreadsheet writes for an error: mend the cell")
    if not value.isprintable() and any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise _wrong("the text holds control characters: remove them")
    if len(value) > limit:
        raise _wrong(f"the text has {len(value)} characters: give up to {limit}")
    return value


def _prompt(value: Any) -> str:
    text = _text(value, PROMPT_LIMIT)
    if not text:
        raise _wrong("the prompt is empty: say what to paint")
    return text


def _whole(low: int, high: int, what: str) -> BeforeValidator:
    def check(value: Any) -> int | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        number = whole_number(value)
        if number is None or not low <= number <= high:
            raise _wrong(f"{shown(value)} is no {what}: give a whole number from {low} to {high}")
        return number

    return BeforeValidator(check)


def _lora(value: Any) -> tuple[LoraChoice, ...]:
    """`name:strength, ...`; or a list of such, or a table of names and strengths."""
    if value is None:
        return ()
    if isinstance(value, dict):
        pairs = list(value.items())[: LORA_LIMIT + 1]
        items = [f"{name}:{_text(strength, 40)}" for name, strength in pairs]
    elif isinstance(value, list):
        items = [_text(item, 300) for item in value[: LORA_LIMIT + 1]]
    else:
        items = _text(value, PROMPT_LIMIT).split(",")
    if len(items) > LORA_LIMIT:
        raise _wrong(f"there are more than {LORA_LIMIT} LoRAs in one row: leave some out")
    return tuple(_one_lora(item.strip()) for item in items if item.strip())


def _one_lora(item: str) -> LoraChoice:
    item = item[6:-1] if item.startswith("<lora:") and item.endswith(">") else item
    name, colon, strength = item.rpartition(":")
    if not colon:
        name, strength = item, "1"
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not name.strip() or not -100 <= number <= 100:
        raise _wrong(f"{shown(item)} is no LoRA: write name:strength, such as style:0.8")
    if re.search(r"(^[/\\~])|(^|[/\\])\.\.([/\\]|$)|:", name):
        raise _wrong(f"{shown(name)} is a path: give the name of a file in the folder of LoRAs")
    return LoraChoice(name.strip(), number)


def loras_in(prompt: str) -> tuple[str, tuple[LoraChoice, ...]]:
    """A prompt without its `<lora:name:strength>`, and those.

    Raises:
        PydanticCustomError: one that is no LoRA.
    """
    if "<lora:" not in prompt:
        return prompt, ()
    found = tuple(_one_lora(item) for item in _LORA.findall(prompt))
    return " ".join(_LORA.sub(" ", prompt).split()), found


def _decoders(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) or value.strip().lower() not in DECODERS:
        raise _wrong(f"{shown(value)}: give one of {', '.join(DECODERS)}")
    return value.strip().lower()


def _seed(value: Any) -> Any:
    minus = re.fullmatch(r"\s*-1(\.0*)?\s*", str(value)[:40]) and not isinstance(value, bool)
    return None if minus else value  # how A1111 writes "no seed of its own"


_Text = Annotated[str, BeforeValidator(lambda value: _text(value, PROMPT_LIMIT))]
_Side = Annotated[int | None, _whole(8, SIDE_LIMIT, "size in pixels")]


class Row(BaseModel):
    """A checked row; None where the row leaves a choice to the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, BeforeValidator(_prompt)] = ""  # of a style that has only a negative
    negative: _Text = ""
    seed: Annotated[int | None, _whole(0, SEEDS - 1, "seed"), BeforeValidator(_seed)] = None
    width: _Side = None
    height: _Side = None
    count: Annotated[int | None, _whole(1, COUNT_LIMIT, "number of pictures")] = None
    lora: Annotated[tuple[LoraChoice, ...], BeforeValidator(_lora)] = ()
    name: Annotated[str, BeforeValidator(lambda value: _text(value, 200))] = ""
    decoders: Annotated[str | None, BeforeValidator(_decoders)] = None
    columns: dict[str, str] = Field(default_factory=dict)  # free ones, for prompts and names
    unusable: dict[str, str] = Field(default_factory=dict)  # columns that hold no text, and why


KNOWN = tuple(name for name in Row.model_fields if name not in ("columns", "unusable"))


@dataclass(frozen=True)
class Placed:
    """A row and where it stands."""

    row: Row
    file: str
    line: int
    number: int = field(default=0)  # 0-based, among all rows of the list, bad ones counted


def column_name(column: str) -> str:
    """A column's name in braces and in a header: case, blanks and dashes are forgiven."""
    return "_".join(column.strip().casefold().replace("-", "_").split())


def known_name(column: str) -> str:
    """A column's own name: case, spaces, dashes and A1111's names for it are forgiven."""
    name = column_name(column)
    return ALIASES.get(name, name)


def known_names(columns: Iterable[str]) -> list[str]:
    """The same for a header."""
    return [known_name(column) for column in columns]


def prompt_column(names: Iterable[str]) -> str | None:
    """Which of a table's columns, by their own names, is the prompt."""
    there = set(names)
    return next((name for name in PROMPTS if name in there), None)


def check_row(raw: Mapping[Any, Any], file: str, line: int, number: int) -> Placed | BadRow:
    """A row as it was read, to a `Row`, or what is wrong with it.

    A column that nobody has to use may hold anything.
    """
    if len(raw) > COLUMN_LIMIT:
        return BadRow(file, line, "", f"there are more than {COLUMN_LIMIT} columns: leave some out")
    fields: dict[str, Any] = {}
    columns: dict[str, str] = {}
    unusable: dict[str, str] = {}
    names = [(known_name(key) if isinstance(key, str) else "", key) for key in raw]
    prompt = prompt_column(name for name, key in names if raw[key] not in (None, ""))
    for name, key in names:
        name = "prompt" if name == prompt else name
        if name in fields or name in columns or name in unusable:
            return BadRow(file, line, name, "the column is there twice: keep one of them")
        value = raw[key]
        if name in KNOWN:
            if value is not None and value != "":
                fields[name] = value
            continue
        try:
            columns[name] = "" if value is None else _text(value, FREE_LIMIT)
        except PydanticCustomError as error:
            unusable[name] = error.message()
    if "prompt" not in fields and "negative" not in fields:
        return BadRow(file, line, "prompt", "there is no prompt: say what to paint")
    try:
        row = Row(**fields, columns=columns, unusable=unusable)
        return Placed(row, file, line, number)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        column = str(first["loc"][0]) if first["loc"] else ""
        return BadRow(file, line, column, first["msg"])
