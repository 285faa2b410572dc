"""The run: jobs to files, a batch at a time, each picture written at once.

A picture's file gets its name when all its bytes are on the disk, its line in the manifest follows.
Killed in between, the next run finds the file, knows it by the id inside, and adds the line. So
nothing is lost and nothing is made twice.

What shares a batch is decided by the list alone, never by what is already there: a batch of which
some pictures are missing is painted whole, and only those are written. Hence the bytes are those of
a run that nothing interrupted (a picture may differ in its last bit between batch sizes).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import TiueError
from ..io.files import explain, write_atomically
from ..io.images import SUFFIXES, PictureError, encode, read_metadata
from .jobs import Job
from .manifest import Manifest, State, check_there
from .options import RunOptions
from .schema import BadRow

_NAMELESS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
WINDOW = 16  # batches that jobs are gathered from, so that few batches are mixed or short
_WRITERS = 4
Batch = list[Job]
Outcome = Any  # a PIL image, the bytes of a file, or a text that says why there is neither
Engine = Callable[[Iterator[Batch]], Iterator[tuple[Batch, Sequence[Outcome]]]]


@dataclass(frozen=True)
class Result:
    """What became of a job or a row."""

    kind: str  # "made", "there" (before this run), "again" (the list has it twice), "failed", "bad"
    job: Job | None = None
    path: Path | None = None
    message: str = ""  # for "failed" and "bad"
    row: BadRow | None = None


@dataclass
class Counts:
    """Results so far, by kind."""

    made: int = 0
    there: int = 0
    again: int = 0
    failed: int = 0
    bad: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for exists."""
        return not (self.failed or self.bad)


@dataclass
class Run:
    """Iterate to work: each step yields a `Result`, and nothing happens between steps.

    Args:
        jobs: from `Planner.jobs`; read as needed.
        engine: paints batches, in any order; an empty one comes back empty. See `local`.
        manifest: of the folder the pictures go to.
        record: a job's metadata; None leaves all metadata out.
        mine: which batches this process paints, by number; default all.
    """

    jobs: Iterable[Job | BadRow]
    engine: Engine
    manifest: Manifest
    options: RunOptions
    record: Callable[[Job], dict[str, Any]] | None = None
    mine: Callable[[int], bool] = lambda number: True
    counts: Counts = field(default_factory=Counts)
    cancelled: bool = False
    finished: bool = False  # whether the whole list was gone through
    negatives: int = 0  # jobs with a negative prompt

    def cancel(self) -> None:
        """Stop after the batch that is being painted; what is painted is still written."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Result]:
        """Do the work.

        Raises:
            TiueError: the disk is full, or the folder is gone; what was written stays.
        """
        for result in self._work():
            name = result.kind
            setattr(self.counts, name, getattr(self.counts, name) + 1)
            yield result

    def _work(self) -> Iterator[Result]:
        told: deque[Result] = deque()  # of jobs that need no painting
        pending: deque[tuple[Job, Future[Path]]] = deque()
        results: list[Result] = []
        error: TiueError | None = None
        with ThreadPoolExecutor(_WRITERS) as writers:
            try:
                for batch, outcomes in self.engine(self._batches(told)):
                    while told:
                        yield told.popleft()
                    for job, outcome in zip(batch, outcomes, strict=True):
                        if not self._wanted(job):
                            continue
                        if isinstance(outcome, str):
                            yield self._failed(job, outcome)
                        else:
                            pending.append((job, writers.submit(self._write, job, outcome)))
                    # The batch before this one was written while this one was painted; of the
                    # first one the pictures are told at once.
                    allowed = len(batch) if self.counts.made else 0
                    while len(pending) > allowed or (pending and pending[0][1].done()):
                        yield self._made(*pending.popleft())
                    if self.cancelled:
                        break
                else:
                    self.finished = not self.cancelled
                while told:
                    yield told.popleft()
            except TiueError as why:
                error = why
            finally:
                # Also when something failed: what is painted gets its file and its line.
                while pending:
                    try:
                        results.append(self._made(*pending.popleft()))
                    except TiueError as why:
                        error = error or why
            yield from results
            if error is not None:
                raise error

    # --- which jobs share a batch ----------------------------------------------------------

    def _batches(self, told: deque[Result]) -> Iterator[Batch]:
        number = 0
        for window in self._windows(told):
            groups: dict[Any, Batch] = {}
            for job in window:
                groups.setdefault(job.group, []).append(job)
            for group in groups.values():
                for first in range(0, len(group), self.options.batch_size):
                    batch = group[first : first + self.options.batch_size]
                    number += 1
                    if not self.mine(number - 1):
                        continue
                    if any(self._wanted(job) for job in batch):
                        if self.cancelled:
                            return
                        yield batch
            if told:
                yield []  # nothing to paint, but something to tell

    def _windows(self, told: deque[Result]) -> Iterator[Batch]:
        window: Batch = []
        for job in self.jobs:
            if self.cancelled:
                return
            if isinstance(job, BadRow):
                told.append(Result("bad", message=str(job), row=job))
                continue
            state = self.manifest.state(job.id)
            if state & State.SEEN:
                told.append(Result("again", job))
                continue
            self.manifest.mark(job.id, State.SEEN)
            self.negatives += bool(job.negative)
            if state & State.MADE:
                told.append(Result("there", job))
            elif state & State.FAILED and not self.options.retry_failed:
                told.append(Result("failed", job, message=f"line {job.line}: it failed before"))
            if state & State.EARLIER and not self._wanted(job):
                continue  # done with, and of no batch of this version of the list
            window.append(job)
            if len(window) >= WINDOW * self.options.batch_size:
                yield window
                window = []
        yield window

    def _wanted(self, job: Job) -> bool:
        state = self.manifest.state(job.id)
        return not state & State.MADE and (self.options.retry_failed or not state & State.FAILED)

    # --- files -----------------------------------------------------------------------------

    def _write(self, job: Job, outcome: Outcome) -> Path:
        if isinstance(outcome, bytes):  # whoever painted it has put its making inside
            data = outcome
        else:
            metadata = self.record(job) if self.record else None
            data = encode(outcome, metadata, self.options.format)
        return save(self.manifest.folder, job.file, SUFFIXES[self.options.format], data, job.id)

    def _made(self, job: Job, future: Future[Path]) -> Result:
        try:
            path = future.result()
        except PictureError as error:
            return self._failed(job, str(error))
        file = path.relative_to(self.manifest.folder).as_posix()
        self.manifest.append({"status": "made", "file": file, **line_of(job)})
        return Result("made", job, path)

    def _failed(self, job: Job, why: str) -> Result:
        self.manifest.append({"status": "failed", "error": why, **line_of(job)})
        return Result("failed", job, message=f"line {job.line}: {why}")


def line_of(job: Job) -> dict[str, Any]:
    """What the manifest says of a job."""
    record = job.record()
    del record["job"], record["version"]
    return {"id": job.id, "index": job.index, "line": job.line, **record}


def save(folder: Path, file: str, suffix: str, data: bytes, job: str) -> Path:
    """Write a picture under its name, or under one of its own where that is another's.

    Raises:
        TiueError: the folder is gone, the disk is full, or a link leads out of the folder.
    """
    name = _fitted(folder, PurePosixPath(file), len(suffix) + len(job) + 1)
    try:
        for inner in reversed(name.parents[:-1]):  # the folder itself is never made anew
            (folder / inner).mkdir(exist_ok=True)
    except OSError as error:
        check_there(folder)
        if error.errno in _NAMELESS:
            raise PictureError(f"its name cannot be used here ({file[:40]}...)") from None
        raise explain(error, folder / name) from error
    for stem in (name.name, f"{name.name}_{job[:8]}", f"{name.name}_{job}"):
        path = folder / name.parent / (stem + suffix)
        if name.parent.parts and not path.parent.resolve().is_relative_to(folder.resolve()):
            raise TiueError(f"{path.parent} leads out of {folder}: remove that link")
        try:
            write_atomically(path, data, overwrite=False, make_folder=False)
        except TiueError as error:
            check_there(folder)
            if getattr(error.__cause__, "errno", None) in _NAMELESS:
                raise PictureError(f"its name cannot be used here ({path.name[:40]}...)") from None
            raise
        except FileExistsError:
            if not same_picture(path, data, job):
                continue  # somebody else's: it stays
        return path
    raise TiueError(f"{path} is taken by another picture: choose another folder")


def _fitted(folder: Path, name: PurePosixPath, tail: int) -> PurePosixPath:
    """A relative path whose parts are as long as the file system takes, in bytes."""
    try:
        most = os.pathconf(folder, "PC_NAME_MAX") - tail
    except (AttributeError, OSError, ValueError):
        return name
    parts = (part.encode()[:most].decode(errors="ignore").rstrip(" .") for part in name.parts)
    return PurePosixPath(*(part or "image" for part in parts))


def same_picture(path: Path, data: bytes, job: str) -> bool:
    """Whether the file that has the name is this job's picture, from a run that was killed."""
    try:
        if path.read_bytes() == data:
            return True
        return read_metadata(path).get("job") == job
    except (TiueError, OSError):
        return False


def local(paint: Callable[[Batch], Sequence[Outcome]]) -> Engine:
    """The engine of one process: paints in the thread that iterates."""

    def engine(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Sequence[Outcome]]]:
        for batch in batches:
            yield batch, paint(batch) if batch else ()

    return engine
