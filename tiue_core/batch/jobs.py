"""Rows to jobs: one job is one picture, and its id is the hash of all that decides it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from ..core.arguments import SEEDS
from ..errors import TiueError
from ..io.images import slug
from ..students.lora import Lora
from .schema import BadRow, LoraChoice, Placed, Row, loras_in
from .syntax import TemplateError
from .templates import (
    NAME,
    BadName,
    check_path,
    file_name,
    fill,
)
from .wildcards import Wildcards

SIZE = 2048 * 2048  # pixels of one picture, at most


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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        loras = tuple((path, strength, digest) for path, strength, digest in values["loras"])
        return cls(**{**values, "loras": loras})


def job_id(settings: Settings, **decides: Any) -> str:
    """SHA-256, the first 128 bits as hex, over everything that decides the picture."""
    shared = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name in ("student", "revision", "width", "height", "steps", "factor"):
        del shared[name]  # names, or told by the job itself
    text = json.dumps({**shared, **decides}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Planner:
    """Makes jobs of rows.

    Args:
        names: template of the file names.
        seed: of rows that have none; default: each row's own, from its text.
        combinations: make every combination of wildcards, rather than a random one a picture.
        loras: the folder where LoRAs are looked up by name.
        subject: what `{prompt}` in a row stands for, as in the styles of A1111.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        names: str = NAME,
        seed: int | None = None,
        count: int = 1,
        combinations: bool = False,
        wildcards: Wildcards | None = None,
        loras: Path | None = None,
        decoders: str = "exact",
        subject: str = "",
    ) -> None:
        try:
            check_path(names)
        except BadName as error:
            raise TiueError(f"--names: {error}") from None
        self.settings, self.names, self.seed, self.count = settings, names, seed, count
        self.every, self.wildcards = combinations, wildcards or Wildcards()
        self.folder, self.decoders, self.subject = loras, decoders, subject
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
        count = row.count or self.count
        own_columns = {**row.columns, **({"prompt": self.subject} if row.columns else {})}
        if "{prompt}" in row.prompt:  # a style of A1111
            own_columns["prompt"] = self.subject
        template = fill(row.prompt, own_columns, row.unusable)
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
            "decoders": row.decoders or self.decoders,
        }
        digests = [(digest, strength) for _, strength, digest in loras]
        several = count > 1 or (self.every and self.wildcards.count(template) > 1)
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
        if self.every:
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
        own = int.from_bytes(digest[8:12], "big") if self.seed is None else self.seed
        return own + earlier

    def _file(self, row: Row, values: dict[str, str | int], several: bool) -> str:
        if not row.name:
            return str(file_name(self.names, {**values, "name": str(values["slug"])}))
        name = file_name(row.name, values)
        if several and not any(f"{{{part}" in row.name for part in ("index", "picture", "seed")):
            name = name.with_name(f"{name.name}_{values['picture']}")
        values = {**values, "name": str(name)}
        if "{name}" not in self.names:  # a name of its own stands alone
            return str(name)
        return str(file_name(self.names, {**values, "name": name.name}))

    def _lora(self, choice: LoraChoice) -> tuple[str, float, str]:
        found = self._loras.get(choice.name)
        if found is None:
            found = self._loras[choice.name] = self._find(choice.name)
        if isinstance(found, str):
            raise _Refused("lora", found)
        return str(found[0]), choice.strength, found[1]

    def _find(self, name: str) -> tuple[Path, str] | str:
        if self.folder is None:
            return f"'{name}' is looked for in a folder of LoRAs: give --loras FOLDER"
        path = self.folder / (name if name.endswith(".safetensors") else f"{name}.safetensors")
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            here = sorted(file.stem for file in self.folder.glob("*.safetensors"))[:8]
            return f"no '{name}' in {self.folder.name}: there is {', '.join(here) or 'none'}"
        try:
            return path, Lora(path).record()["hash"]
        except (TiueError, OSError) as error:
            return str(error)


class _Refused(ValueError):
    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
