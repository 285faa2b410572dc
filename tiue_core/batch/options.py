"""Options and rows to jobs: `RunOptions` says what is asked for, `Planner` makes jobs of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from ..core.arguments import SEEDS
from ..errors import TiueError
from ..io.images import slug
from ..students.lora import Lora
from .jobs import NAME, BadName, Job, Settings, check_path, file_name, fill, job_id
from .lists import Rows, list_hash, read_list, read_text
from .schema import BadRow, LoraChoice, Placed, Row, loras_in
from .syntax import TemplateError
from .wildcards import COMBINATIONS, Wildcards

SIZE = 2048 * 2048  # pixels of one picture, at most


@dataclass(frozen=True)
class RunOptions:
    """A list, what its rows leave open, and how its pictures are written.

    Args:
        source: a file, or the text of a list (`kind` says of which kind).
        kind: "txt", "csv", "jsonl", "yaml"; default: by the file's suffix, "txt" for a text.
        names, seed, count, combinations, loras, decoders: see `Planner`.
        wildcards: the folder of wildcard files.
        limit: combinations of one row that are too many.
        subject: what `{prompt}` in a row stands for, as in the styles of A1111.
        format: of the files, a key of `formats.SUFFIXES`; with `metadata` in them or not.
        retry_failed: try again what failed in an earlier run.
    """

    source: Path | str
    kind: str | None = None
    encoding: str | None = None
    names: str = NAME
    seed: int | None = None
    count: int = 1
    combinations: bool = False
    wildcards: Path | None = None
    limit: int = COMBINATIONS
    loras: Path | None = None
    decoders: str = "exact"
    batch_size: int = 8
    subject: str = ""
    format: str = "png"
    metadata: bool = True
    retry_failed: bool = False

    def rows(self) -> Rows:
        """The rows as they are read; bad ones are values."""
        if isinstance(self.source, Path):
            return read_list(self.source, kind=self.kind, encoding=self.encoding)
        return read_text(self.source, self.kind or "txt")

    def jobs(self, settings: Settings, planner: Planner | None = None) -> Iterator[Job | BadRow]:
        return (planner or Planner(settings, self)).jobs(self.rows())

    def bad_rows(self, settings: Settings, most: int = 1000) -> list[BadRow]:
        """What is wrong with the list, for a table; reads all of it."""
        return list(islice((row for row in self.jobs(settings) if isinstance(row, BadRow)), most))

    @property
    def name(self) -> str:
        return self.source.name if isinstance(self.source, Path) else "list"

    def fingerprint(self) -> str:
        """Of the list's content and of what decides which jobs share a batch."""
        if isinstance(self.source, Path):
            content = list_hash(self.source)
        else:
            content = hashlib.sha256(self.source.encode("utf-8", "replace")).hexdigest()
        parts = [content, self.seed, self.count, self.combinations, self.decoders, self.batch_size]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Planner:
    """Makes jobs of rows.

    Raises:
        TiueError: `names` leads out of the folder, or there is no such folder of wildcards.
    """

    def __init__(self, settings: Settings, options: RunOptions) -> None:
        try:
            check_path(options.names)
        except BadName as error:
            raise TiueError(f"--names: {error}") from None
        self.settings, self.options = settings, options
        self.wildcards = Wildcards(options.wildcards, options.limit)
        self._loras: dict[str, tuple[Path, str] | str] = {}

    def jobs(self, rows: Iterable[Placed | BadRow]) -> Iterator[Job | BadRow]:
        """Jobs in the order of the list; bad rows where they stand."""
        index = 0
        repeats: Counter[bytes] = Counter()  # of rows without a seed: they count on
        for placed in rows:
            if isinstance(placed, BadRow):
                yield placed
                continue
            row = placed.row
            try:
                for job in self._of_row(placed, repeats, index):
                    index += 1
                    yield job
            except PydanticCustomError as error:
                yield BadRow(placed.file, placed.line, "prompt", error.message())
            except _Refused as error:
                yield BadRow(placed.file, placed.line, error.column, str(error))
            except TemplateError as error:
                yield BadRow(placed.file, placed.line, "prompt", str(error))
            except BadName as error:
                of_file = "no column: use" in str(error) or "folder" in str(error)
                column = ("name" if row.name else "--names") if of_file else "prompt"
                yield BadRow(placed.file, placed.line, column, str(error))

    def _of_row(self, placed: Placed, repeats: Counter[bytes], index: int) -> Iterator[Job]:
        row, settings = placed.row, self.settings
        width, height = row.width or settings.width, row.height or settings.height
        for name, side in (("width", width), ("height", height)):
            if side % settings.factor:
                near = max(round(side / settings.factor), 1) * settings.factor
                raise _Refused(
                    name, f"{side}: give a multiple of {settings.factor}, such as {near}"
                )
        if width * height > SIZE:
            raise _Refused("width", f"{width} x {height} is too large: give at most {SIZE} pixels")
        count = row.count or self.options.count
        own_columns = {**row.columns, **({"prompt": self.options.subject} if row.columns else {})}
        if "{prompt}" in row.prompt:  # a style of A1111
            own_columns["prompt"] = self.options.subject
        template = " ".join(fill(row.prompt, own_columns, row.unusable).split())
        if self.options.subject and "{prompt}" not in row.prompt:
            template = ", ".join(filter(None, (self.options.subject, template)))
        if not template:
            raise _Refused("prompt", "there is no prompt: say what to paint, here or with --prompt")
        loras = tuple(self._lora(choice) for choice in row.lora)
        seed = self._first_seed(row, repeats, count)
        if seed + count > SEEDS:
            raise _Refused(
                "seed", f"{seed} and {count} pictures: give a seed below {SEEDS - count}"
            )
        decides: dict[str, Any] = {
            "negative": fill(row.negative, own_columns, row.unusable),
            "width": width,
            "height": height,
            "decoders": row.decoders or self.options.decoders,
        }
        digests = [(digest, strength) for _, strength, digest in loras]
        several = count > 1 or (self.options.combinations and self.wildcards.count(template) > 1)
        for picture, (prompt, own) in enumerate(self._prompts(template, seed, count)):
            prompt, named = loras_in(prompt)
            if not prompt:
                raise _Refused("prompt", "it comes out empty: an option of {a|} is nothing")
            if named:
                loras = tuple(self._lora(choice) for choice in (*row.lora, *named))
                digests = [(digest, strength) for _, strength, digest in loras]
            key = job_id(settings, prompt=prompt, seed=own, loras=digests, **decides)
            values: dict[str, str | int] = {
                **row.columns,
                "index": index + picture,
                "slug": slug(prompt),
                "seed": own,
                "picture": picture,
                "line": placed.line,
                "width": width,
                "height": height,
                "id": key[:8],
            }
            yield Job(
                id=key,
                prompt=prompt,
                seed=own,
                loras=loras,
                file=self._file(row, values, several),
                index=index + picture,
                line=placed.line,
                template=template if template != prompt else "",
                columns=row.columns,
                **decides,
            )

    def _prompts(self, template: str, seed: int, count: int) -> Iterator[tuple[str, int]]:
        """(prompt, seed) of every picture of a row."""
        if self.options.combinations:
            for prompt in self.wildcards.combinations(template):
                yield from ((prompt, seed + n) for n in range(count))
        else:
            for n in range(count):
                yield self.wildcards.sample(template, seed + n, turn=n), seed + n

    def _first_seed(self, row: Row, repeats: Counter[bytes], count: int) -> int:
        if row.seed is not None:
            return row.seed
        text = repr((row.prompt, row.negative, row.width, row.height, row.lora, row.columns))
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        earlier = repeats[digest[:8]]
        repeats[digest[:8]] += count
        own = (
            int.from_bytes(digest[8:12], "big") if self.options.seed is None else self.options.seed
        )
        return own + earlier

    def _file(self, row: Row, values: dict[str, str | int], several: bool) -> str:
        if not row.name:
            return str(file_name(self.options.names, {**values, "name": str(values["slug"])}))
        name = file_name(row.name, values)
        if several and not any(f"{{{part}" in row.name for part in ("index", "picture", "seed")):
            name = name.with_name(f"{name.name}_{values['picture']}")
        values = {**values, "name": str(name)}
        if "{name}" not in self.options.names:  # a name of its own stands alone
            return str(name)
        return str(file_name(self.options.names, {**values, "name": name.name}))

    def _lora(self, choice: LoraChoice) -> tuple[str, float, str]:
        found = self._loras.get(choice.name)
        if found is None:
            found = self._loras[choice.name] = self._find(choice.name)
        if isinstance(found, str):
            raise _Refused("lora", found)
        return str(found[0]), choice.strength, found[1]

    def _find(self, name: str) -> tuple[Path, str] | str:
        if self.options.loras is None:
            return f"'{name}' is looked for in a folder of LoRAs: give --loras FOLDER"
        path = self.options.loras / (
            name if name.endswith(".safetensors") else f"{name}.safetensors"
        )
        if not path.resolve().is_relative_to(self.options.loras.resolve()) or not path.is_file():
            here = sorted(file.stem for file in self.options.loras.glob("*.safetensors"))[:8]
            return f"no '{name}' in {self.options.loras.name}: there is {', '.join(here) or 'none'}"
        try:
            return path, Lora(path).record()["hash"]
        except (TiueError, OSError) as error:
            return str(error)


class _Refused(ValueError):
    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
