"""What the command line, the page and ComfyUI share: from a list and a student to a run.

studio = Studio.open("stickers")                       # loads the student
plan   = Plan(Path("prompts.csv"), names="{index}_{slug}")
with studio.run(plan, Path("out")) as run:
    for result in run: ...                             # run.cancel() from anywhere
finish(Path("out"), plan)                              # contact sheet, index.html
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import check_writable, write_atomically
from .engine import Engine, Run, local
from .jobs import Job, Planner, Settings
from .lists import (
    Rows,
    list_hash,
    read_list,
    read_text,
)
from .manifest import Manifest, only_one
from .paint import Painter
from .schema import BadRow
from .templates import NAME
from .wildcards import COMBINATIONS, Wildcards

RECORD = ".tiue-batch.json"  # what was asked for last, in the folder of pictures


@dataclass(frozen=True)
class Plan:
    """What to make: a list, and what its rows leave open.

    Args:
        source: a file, or the text of a list (`kind` says of which kind).
        kind: "txt", "csv", "jsonl", "yaml"; default: by the file's suffix, "txt" for a text.
        names, seed, count, combinations, loras, decoders: see `Planner`.
        wildcards: the folder of wildcard files.
        limit: combinations of one row that are too many.
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

    def rows(self) -> Rows:
        """The rows as they are read; bad ones are values."""
        if isinstance(self.source, Path):
            return read_list(self.source, kind=self.kind, encoding=self.encoding)
        return read_text(self.source, self.kind or "txt")

    def jobs(self, settings: Settings) -> Iterator[Job | BadRow]:
        planner = Planner(
            settings,
            names=self.names,
            seed=self.seed,
            count=self.count,
            combinations=self.combinations,
            wildcards=Wildcards(self.wildcards, self.limit),
            loras=self.loras,
            decoders=self.decoders,
        )
        return planner.jobs(self.rows())

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


@dataclass
class Studio:
    """A loaded student and the settings that all its jobs share."""

    painter: Painter
    settings: Settings
    notes: list[str] = field(default_factory=list)  # what a run found worth telling

    @classmethod
    def open(
        cls,
        student: Any = "stickers",
        *,
        device: str | None = None,
        dtype: str | None = None,
        steps: int | None = None,
        base: str | None = None,
    ) -> Studio:
        """Load a student (a name, or a `students.Source`).

        Raises:
            TiueError: no such student; `steps` that its schedule cannot take.
        """
        from ..io.messages import quiet_libraries
        from ..pipelines.load import load
        from ..students.resolve import find
        from ..students.source import Source

        source = student if isinstance(student, Source) else find(student)
        quiet_libraries()
        pipe = load(source, device=device, dtype=dtype, base=base)
        pipe.set_progress_bar_config(disable=True)
        digest = source.content_hash()
        if base is not None:
            digest = hashlib.sha256((digest + find(base).content_hash()).encode()).hexdigest()
        settings = settings_of(pipe, source.name, digest, steps, source.revision)
        return cls(Painter(pipe, settings), settings)

    @contextmanager
    def run(
        self,
        plan: Plan,
        folder: Path,
        *,
        engine: Engine | None = None,
        kind: str = "png",
        metadata: bool = True,
        retry_failed: bool = False,
        mine: Callable[[int], bool] | None = None,
        together: Callable[[], None] = lambda: None,
    ) -> Iterator[Run]:
        """A run in `folder`, which no other run may enter meanwhile.

        Args:
            mine: which batches are this process's; given to all but the first of several
                processes, the folder is the first's to lock.
            together: waits for the other processes.

        Raises:
            TiueError: the folder cannot be written, or another run is at work there.
        """
        check_writable(folder)
        fingerprint = plan.fingerprint()
        with only_one(folder) if mine is None or mine(0) else nullcontext():
            manifest = Manifest(folder, fingerprint)
            together()
            if mine is None or mine(0):
                self.notes += _changes(folder, plan, self.settings, manifest)
            run = Run(
                plan.jobs(self.settings),
                engine or local(self.painter.paint),
                manifest,
                plan.batch_size,
                kind,
                self.painter.record if metadata else None,
                retry_failed,
                mine or (lambda number: True),
            )
            cut = self.painter.cut
            yield run
            if run.negatives:
                self.notes.append(
                    f"{run.negatives} negative prompts are kept in the metadata only: a student "
                    "paints without guidance"
                )
            if self.painter.cut > cut:
                self.notes.append(
                    f"{self.painter.cut - cut} prompts are longer than the text encoder reads: "
                    "their last words count for nothing"
                )
            if plan.fingerprint() != fingerprint:
                self.notes.append(f"{plan.name} changed while it was read: run again")
            elif run.finished and (left := manifest.unseen()):
                self.notes.append(
                    f"{left} pictures in {folder} are of rows that {plan.name} does not have"
                )
            _sweep(folder)

    def seconds_per_picture(self, plan: Plan) -> float | None:
        """How long a picture takes, by painting the first batch twice; None: nothing to paint."""
        jobs = (job for job in plan.jobs(self.settings) if isinstance(job, Job))
        first = next(jobs, None)
        if first is None:
            return None
        alike = (job for job in islice(jobs, 1000) if job.group == first.group)
        batch = [first, *islice(alike, plan.batch_size - 1)]
        self.painter.paint(batch)  # the first time everything is slower
        began = time.perf_counter()
        self.painter.paint(batch)
        return (time.perf_counter() - began) / len(batch)


def settings_of(
    pipe: Any, student: str, digest: str, steps: int | None = None, revision: str | None = None
) -> Settings:
    """What all jobs of a pipeline share.

    Raises:
        TiueError: `steps` that the schedule cannot take.
    """
    try:
        timesteps = tuple(int(t) for t in pipe.schedule(steps).timesteps)
    except ValueError as error:
        raise TiueError(str(error)) from None
    own, factor = pipe.unet.config.sample_size, pipe.vae_scale_factor
    height, width = own if isinstance(own, list | tuple) else (own, own)
    return Settings(
        student=student,
        student_hash=digest,
        timesteps=timesteps,
        width=width * factor,
        height=height * factor,
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        steps=steps,
        revision=revision,
        factor=factor,
    )


def _changes(folder: Path, plan: Plan, settings: Settings, manifest: Manifest) -> list[str]:
    """What is not as it was in the last run here; remembers how it is now."""
    now = {
        "list": plan.name,
        "fingerprint": manifest.run,
        "student": settings.student,
        "student_hash": settings.student_hash,
    }
    path, notes = folder / RECORD, []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["list"] != now["list"]:
            notes.append(f"{folder} was made from {before['list']}: adding to it")
        elif before["fingerprint"] != now["fingerprint"]:
            notes.append(
                f"{plan.name} or its options changed since the last run: making what is new"
            )
        if before["student_hash"] != now["student_hash"]:
            notes.append("the student is not that of the last run: all pictures are made anew")
    except (OSError, ValueError, TypeError, KeyError):
        pass
    if manifest.gone:
        notes.append(f"{manifest.gone} pictures of the manifest are gone: making them again")
    if manifest.broken:
        notes.append(f"{manifest.broken} lines of {manifest.path} cannot be read: passed over")
    write_atomically(path, (json.dumps(now, indent=2) + "\n").encode())
    return notes


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed had half written."""
    now = time.time()
    for path in folder.rglob(".tiue-*.part"):
        with suppress(OSError):
            # A clock that was wrong, or another machine's, may have dated it in the future.
            if abs(path.stat().st_mtime - now) > 2:
                path.unlink()
