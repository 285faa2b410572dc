"""Prompts from wherever they are: text, JSONL, parquet, CSV, the hub, or the stickers world.

Files are read a line (or a row group) at a time; what is kept is each different prompt, once. They
are then sorted and shuffled with a seed, so the order depends on what is in the file alone.
JourneyDB's ``train_anno.jsonl`` is read as the authors read it: the first key of ``Task2``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import TiueError
from ..pipelines.text import token_ids
from .recipe import DistillRecipe, data_seed
from .recipe_scratch import WorldConfig

if TYPE_CHECKING:
    from ..stickers.world import Scene

COLUMNS = ("prompt", "caption", "text", "Prompt", "Caption", "TEXT")  #: looked for in this order
WORLD_PROMPTS = 20_000
HUB = "hub:"  #: hub:OWNER/NAME, or hub:OWNER/NAME:SPLIT


class PromptTokens:
    """Prompts that become token ids when they are asked for: ``tokens[rows]`` is (B, L)."""

    def __init__(self, pipeline: Any, prompts: list[str]):
        self.pipeline, self.prompts = pipeline, prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return token_ids(self.pipeline, [self.prompts[row] for row in rows.tolist()])


def load_prompts(recipe: DistillRecipe) -> list[str]:
    """The recipe's prompts, each once, shuffled with its seed.

    Raises:
        TiueError: there are none, or one only, or they cannot be read.
    """
    if recipe.world is not None:
        return [scene.caption for scene in world_scenes(recipe.world, data_seed(recipe))]
    if recipe.prompts is None:
        raise TiueError("The recipe names neither `prompts` nor `world`: give a file of prompts.")
    source = str(recipe.prompts)
    found = {line.strip() for line in _lines(source, recipe.prompt_column)} - {""}
    if len(found) < 2:
        count = "one prompt only" if found else "no prompt"
        raise TiueError(f"{source} holds {count}: a student needs many, one a line or row.")
    prompts = sorted(found)
    random.Random(data_seed(recipe)).shuffle(prompts)
    return prompts


def world_scenes(config: WorldConfig, seed: int) -> list[Scene]:
    """The scenes whose captions are the prompts of a recipe with a ``world``, in their order."""
    from ..stickers.world import World

    return World(**config.model_dump()).scenes(WORLD_PROMPTS, seed + 7)


def _lines(source: str, column: str | None) -> Iterator[str]:
    kind = Path(source).suffix.lower()
    try:
        if source.startswith(HUB):
            yield from _hub(source, column)
        elif kind == ".jsonl":
            with Path(source).open(encoding="utf-8") as file:
                yield from _json_lines(file, source, column)
        elif kind in (".parquet", ".csv"):
            yield from _table(source, kind, column)
        else:
            with Path(source).open(encoding="utf-8") as file:
                yield from file
    except OSError as error:
        why = error.strerror or str(error).splitlines()[0]
        raise TiueError(f"Prompts {source} cannot be read ({why}): check the path.") from None
    except UnicodeDecodeError:
        raise TiueError(f"Prompts {source} are not UTF-8 text: save them as that.") from None


def _json_lines(lines: Iterable[str], source: str, column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise TiueError(f"{source}, line {number} is not JSON: mend or remove it.") from None
        yield _prompt(row, column, f"{source}, line {number}")


def _prompt(row: Any, column: str | None, where: str) -> str:
    """The prompt of a row: a string, a named or usual column, or JourneyDB's ``Task2``."""
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        if column is None and isinstance(row.get("Task2"), dict):  # "Caption", "Caption:", ...
            return str(next(iter(row["Task2"].values()), None) or "")
        names = (column,) if column else COLUMNS
        for name in names:
            if name in row:
                return str(row[name] or "")
    asked = f"column {column!r}" if column else f"column named {', '.join(COLUMNS[:3])}"
    raise TiueError(f"{where} has no {asked}: name it in `prompt_column`.")


def _table(source: str, kind: str, column: str | None) -> Iterator[str]:
    _need("pyarrow")
    from pyarrow import ArrowException, csv
    from pyarrow import parquet as pq

    try:
        batches: Any
        if kind == ".parquet":
            file = pq.ParquetFile(source)
            names, read = file.schema_arrow.names, lambda name: file.iter_batches(columns=[name])
        else:
            batches = csv.open_csv(source)
            names, read = batches.schema.names, lambda name: batches
        name = _column(names, column, source)
        for batch in read(name):
            yield from (str(value or "") for value in batch.column(name).to_pylist())
    except ArrowException as error:
        why = str(error).splitlines()[0]
        raise TiueError(f"Prompts {source} cannot be read ({why}): check the file.") from None


def _hub(source: str, column: str | None) -> Iterator[str]:
    _need("datasets")
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TiueError(f"{source} cannot be read ({why}): check name and split.") from None
    for row in rows:
        yield _prompt(row, column, source)


def _column(names: list[str], column: str | None, source: str) -> str:
    for name in (column,) if column else COLUMNS:
        if name in names:
            return str(name)
    raise TiueError(
        f"{source} has the columns {', '.join(names)}: name the prompts' in `prompt_column`."
    )


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise TiueError(f"{package} is not installed: pip install 'tiue[train]'")
