"""What the command line, the page and ComfyUI share: from a list and a student to a run.

session = BatchSession.open("stickers")                       # loads the student
options = RunOptions(Path("prompts.csv"), names="{index}_{slug}")
with session.run(options, Path("out")) as run:
    for result in run: ...                             # run.cancel() from anywhere
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.arguments import both_sides
from ..errors import TiueError
from ..io.files import check_writable, write_atomically
from ..io.images import SUFFIXES
from ..io.messages import need_torch, quiet_libraries
from .engine import Engine, Run, local
from .jobs import Job, Settings
from .manifest import Manifest, only_one
from .options import Planner, RunOptions
from .paint import GraphPainter, Painter

RECORD = ".tiue-batch.json"  # what was asked for last, in the folder of pictures


@dataclass
class BatchSession:
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
        engine: str = "torch",
        before: str | None = None,
    ) -> BatchSession:
        """Load a student (a name, or a `students.Source`).

        Args:
            engine: of `optimize.engines.CHOICES`; another than "torch" loads its graphs, where
                there are some, and no torch.
            before: the dtype that graphs are to go on in; see `dtype_before`.

        Raises:
            TiueError: no such student; `steps` that its schedule cannot take.
        """
        from ..students.resolve import Source, completed, find

        source = student if isinstance(student, Source) else find(student)
        source = completed(source, base)
        if engine != "torch" and device in (None, "cpu") and base is None:
            opened = _with_graphs(source, engine, steps, dtype or before)
            if opened is not None:
                return opened
        need_torch()
        from ..pipelines.load import load

        quiet_libraries()
        pipe = load(source, device=device, dtype=dtype)
        digest = source.content_hash()
        settings = settings_of(pipe, source.name, digest, steps, source.revision)
        settings = replace(settings, base=source.base_name or "")
        if engine not in ("auto", "torch"):
            named = {"student": source.name, "student_hash": digest, "loras": []}
            pipe.use_graphs(engine, pipe.unet.dtype, named)  # the dtype is part of a job
        return cls(Painter(pipe, settings), settings)

    @contextmanager
    def run(
        self,
        options: RunOptions,
        folder: Path,
        *,
        engine: Engine | None = None,
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
        fingerprint = options.fingerprint()
        with only_one(folder) if mine is None or mine(0) else nullcontext():
            manifest = Manifest(folder, fingerprint, SUFFIXES[options.format])
            together()
            if mine is None or mine(0):
                self.notes += _changes(folder, options, self.settings, manifest)
            planner = Planner(self.settings, options)
            run = Run(
                options.jobs(self.settings, planner),
                engine or local(self.painter.paint),
                manifest,
                options,
                self.painter.record if options.metadata else None,
                mine or (lambda number: True),
            )
            cut = self.painter.cut
            yield run
            for line in planner.wildcards.left_out:
                self.notes.append(f"{line}: left out")
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
            if options.fingerprint() != fingerprint:
                self.notes.append(f"{options.name} changed while it was read: run again")
            elif run.finished and (left := manifest.unseen()):
                self.notes.append(
                    f"{left} pictures in {folder} are of rows that {options.name} does not have"
                )
            _sweep(folder)

    def seconds_per_picture(self, options: RunOptions) -> float | None:
        """How long a picture takes, by painting the first batch twice; None: nothing to paint."""
        jobs = (job for job in options.jobs(self.settings) if isinstance(job, Job))
        first = next(jobs, None)
        if first is None:
            return None
        alike = (job for job in islice(jobs, 1000) if job.group == first.group)
        batch = [first, *islice(alike, options.batch_size - 1)]
        self.painter.paint(batch)  # the first time everything is slower
        began = time.perf_counter()
        self.painter.paint(batch)
        return (time.perf_counter() - began) / len(batch)


def _with_graphs(
    source: Any, engine: str, steps: int | None, dtype: str | None
) -> BatchSession | None:
    """A session that paints with the student's graphs, where there are some."""
    from ..optimize import engines

    if dtype not in (None, "float32", "bfloat16"):
        engines.check(engine)
        return None
    digest = source.content_hash()
    graphs = engines.kept(engine, dtype, student_hash=digest, steps=steps)
    if graphs is None:
        return None
    about = graphs.about
    settings = Settings(
        student=source.name,
        student_hash=digest,
        timesteps=tuple(about["timesteps"]),
        width=about["width"],
        height=about["height"],
        dtype=graphs.precision,
        steps=steps,
        revision=source.revision,
        factor=about["factor"],
    )

    def in_torch() -> Any:
        need_torch()
        from ..pipelines.load import load

        quiet_libraries()
        return load(source, device="cpu", dtype="float32")

    return BatchSession(GraphPainter(graphs, settings, in_torch, source.path), settings)


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
    factor = pipe.vae_scale_factor
    height, width = both_sides(pipe.unet.config.sample_size)
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


def dtype_before(folder: Path) -> str | None:
    """In what the pictures of a folder were computed: going on with them means going on in it."""
    try:
        before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return str(before.get("dtype", "float32"))
    except (OSError, ValueError, AttributeError):
        return None


def _changes(
    folder: Path, options: RunOptions, settings: Settings, manifest: Manifest
) -> list[str]:
    """What is not as it was in the last run here; remembers how it is now."""
    now = {
        "list": options.name,
        "fingerprint": manifest.run,
        "student": settings.student,
        "student_hash": settings.student_hash,
        "dtype": settings.dtype,
    }
    path, notes = folder / RECORD, []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["list"] != now["list"]:
            notes.append(f"{folder} was made from {before['list']}: adding to it")
        elif before["fingerprint"] != now["fingerprint"]:
            notes.append(
                f"{options.name} or its options changed since the last run: making what is new"
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
