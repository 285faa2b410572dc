"""A run of `tiue batch` on the terminal: what is told, the bar, Ctrl-C, the end; and who tells it
where `accelerate launch -m tiue_core batch ...` started a process per GPU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TiueError

TOLD = 20  # bad rows that are told one by one
_PULSE = 30  # s between lines of progress where there is no terminal


@dataclass(frozen=True)
class Share:
    """This process among those that were launched together."""

    index: int = 0
    count: int = 1
    device: str | None = None
    together: Callable[[], None] = lambda: None  # wait for the others
    gather: Callable[[Any], list[Any]] = lambda value: [value]  # everyone's, in order

    @property
    def first(self) -> bool:
        """Whether this one speaks, locks the folder and finishes it."""
        return self.index == 0

    @property
    def mine(self) -> Callable[[int], bool] | None:
        """Which batches this process paints; None: all of them."""
        if self.count == 1:
            return None
        return lambda number: number % self.count == self.index


def share(device: str | None = None) -> Share:
    """How many processes were launched, and which one this is."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return Share(device=device)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=True if device == "cpu" else None)
    return Share(
        state.process_index,
        state.num_processes,
        device or str(state.device),
        state.wait_for_everyone,
        lambda value: gather_object([value]),
    )


class Session:
    """One `tiue batch` on the terminal."""

    def __init__(self, plan: Any, studio: Any, out: Path, ours: Any, as_json: bool) -> None:
        self.plan, self.studio, self.out, self.ours = plan, studio, out, ours
        self.as_json = as_json
        self.bad: list[Any] = []
        self.failures: list[str] = []

    def go(self, options: dict[str, Any], sheet: bool, index: bool) -> None:
        from .console import Failed, emit, say

        began, error = time.monotonic(), None
        with self.studio.run(self.plan, self.out, **options) as run, _stoppable(run, say):
            self._tell_notes()
            try:
                self._paint(run)
            except TiueError as why:
                error = why
        counts = _together(self.ours, run.counts)
        seconds = time.monotonic() - began
        page = None
        if self.ours.first and error is None:
            page = self._finish(run, sheet, index)
        self.ours.together()
        self._tell_notes()
        result = self._result(counts, seconds)
        if error is not None:
            raise Failed(str(error), result) from error
        line = self._line(counts, seconds)
        if run.cancelled and not run.finished:
            raise Failed(f"stopped: {line}; run again to go on", result, status=130)
        if not self.ours.first:
            return  # the first one tells, for all
        if counts["failed"] or counts["bad"]:
            raise Failed(f"{line}: not all of the list was made", result)
        if self.as_json:
            emit(result)
        else:
            print(f"{line}; in {self.out}" + (f", see {page}" if page else ""))

    def _paint(self, run: Any) -> None:
        from .console import say

        count = _Count(lambda: self.plan.jobs(self.studio.settings))
        with _bar(self.ours.first) as bar:
            for result in run:
                if result.kind in ("bad", "failed") and self.ours.first:
                    kept = self.bad if result.row else self.failures
                    if len(kept) < TOLD:
                        say(result.message)
                    elif len(kept) == TOLD:
                        say("... and more of the kind, see --json")
                    if len(kept) < 1000:
                        kept.append(result.row or result.message)
                bar(run.counts, count.so_far)

    def _finish(self, run: Any, sheet: bool, index: bool) -> Path | None:
        """What shows the pictures; returns the index, where it is written."""
        from ..batch.overview import contact_sheets, html_index
        from .console import progress

        if not (sheet or index):
            return None
        page = None
        with progress("contact sheets" if sheet else "index", None):
            if index:
                page = html_index(self.out, run.manifest.made())
            if sheet:
                contact_sheets(self.out, run.manifest.made())
        return page

    def _tell_notes(self) -> None:
        from .console import say

        for note in self.studio.notes if self.ours.first else ():
            say(note)
        self.studio.notes.clear()

    def _result(self, counts: dict[str, int], seconds: float) -> dict[str, Any]:
        return {
            **counts,
            "seconds": round(seconds, 3),
            "out": str(self.out),
            "bad_rows": [vars(row) for row in self.bad],
            "failures": self.failures,
        }

    @staticmethod
    def _line(counts: dict[str, int], seconds: float) -> str:
        words = {"made": "made", "there": "there already", "again": "twice in the list"}
        words |= {"failed": "failed", "bad": "bad rows"}
        parts = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
        speed = counts["made"] / max(seconds, 1e-9)
        return ", ".join(parts or ["nothing to make"]) + (
            f", {speed:.2f} images/s" if counts["made"] else ""
        )


class _Count:
    """How long the list is, counted beside the work, in a fiftieth of its time."""

    def __init__(self, list_jobs: Callable[[], Iterator[Any]]) -> None:
        self.list_jobs, self.count, self.done = list_jobs, 0, False
        self.jobs: Iterator[Any] | None = None  # the list is read again, once somebody asks
        self.worked = time.perf_counter()

    def so_far(self) -> int | None:
        """The total once it is known; counts on for a while if it is not."""
        began = time.perf_counter()
        until = began + 0.02 * (began - self.worked)
        try:
            self.jobs = self.jobs or self.list_jobs()
            while not self.done and time.perf_counter() < until:
                self.count += 1
                next(self.jobs)
        except StopIteration:
            self.done, self.count = True, self.count - 1
        except TiueError:  # the run itself tells what is wrong
            self.done, self.count = True, 0
        self.worked = time.perf_counter()
        return (self.count or None) if self.done else None


def _together(ours: Any, counts: Any) -> dict[str, int]:
    """Counts of all processes: each painted its own, all of them read the same list."""
    every = ours.gather(vars(counts))
    own = {key: sum(one[key] for one in every) for key in ("made", "failed")}
    return {**every[0], **own}


@contextmanager
def _stoppable(run: Any, say: Any) -> Iterator[None]:
    """Ctrl-C stops after the batch that is being painted; a second one at once."""

    def stop(*_: Any) -> None:
        run.cancel()
        signal.signal(signal.SIGINT, before)
        say("stopping after this batch; once more to stop at once")

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(shown: bool) -> Iterator[Any]:
    """A progress bar with images/s and time left; without a terminal, a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from .console import say

    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns.append(TextColumn("{task.fields[speed]}"))
    began = time.monotonic()
    spoke = began

    def show(counts: Any, count: Callable[[], int | None]) -> None:
        nonlocal spoke
        now = time.monotonic()
        if not shown or not (console.is_terminal or now - spoke > _PULSE):
            return
        done, total = sum(vars(counts).values()), count()
        rate = counts.made / max(now - began, 1e-9)
        left = f", {clock((total - done) / rate)} left" if total and rate else ""
        speed = f"{rate:.2f} images/s{left}"
        bar.update(task, completed=done, total=total, speed=speed)
        if not console.is_terminal:
            spoke = now
            say(f"{done} of {total or '?'}, {speed}")

    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("painting", total=None, speed="")
        yield show


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
