"""One thread that owns the models, and who is next.

Clients take turns, one piece of work each, however much one of them asks for. Of a client's own
work the latest of a lane replaces what still waits there: while somebody types, only the last text
is painted. Work that has begun is finished, since one picture is one pass.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import TiueError
from .state import Limits, ServerConfig

Work = Callable[["Models"], Any]


class SupersededError(Exception):
    """Newer work of the same client took its place."""


class LeftError(Exception):
    """The client has gone, or the page is closing."""


class Models:
    """Loaded students, the least recently used ones put away. Of the worker's thread alone."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._studios: OrderedDict[str, Any] = OrderedDict()

    def studio(self, label: str) -> Any:
        """A `batch.session.BatchSession`, loaded if need be.

        Raises:
            TiueError: it cannot be loaded, or its weights are not numbers.
        """
        if label not in self._studios:
            from ..batch.session import BatchSession

            while len(self._studios) >= self.config.limits.loaded:
                self._studios.popitem(last=False)
            config = self.config
            studio = BatchSession.open(
                config.students[label], device=config.device, dtype=config.dtype, base=config.base
            )
            check_finite(studio.painter.pipe, label)
            if config.optimize:
                with warnings.catch_warnings():  # where nothing pays, it paints as before
                    warnings.filterwarnings("ignore", message="optimizing does not pay")
                    studio.painter.pipe.optimize(config.engine)
            elif config.engine != "torch":
                studio.painter.pipe.use_graphs(config.engine)
            self._studios[label] = studio
        self._studios.move_to_end(label)
        return self._studios[label]

    def __len__(self) -> int:
        return len(self._studios)


def check_finite(pipe: Any, label: str) -> None:
    """Raise TiueError if a weight is NaN or infinite: such a student paints black, in silence."""
    from ..shared.finite import broken_weight

    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, part, None)
        if model is not None and (name := broken_weight(model)):
            raise TiueError(
                f"the weights of {label} are broken ({part}: {name} holds NaN or infinity): "
                "choose another student"
            )


@dataclass
class _Job:
    work: Work
    lane: str
    future: Future = field(default_factory=Future)


class Worker:
    """Give it work with `submit`; it answers with futures.

    Args:
        models: handed to each piece of work.
    """

    def __init__(self, models: Any, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # by client, next one first
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="tiue-worker", daemon=True)
        self._thread.start()

    def submit(
        self, client: str, work: Work, *, lane: str = "", replaces: Sequence[str] = ()
    ) -> Future:
        """Queue a piece of work.

        Args:
            lane: what it is, for `replaces`.
            replaces: lanes of the same client whose waiting work this makes needless; its futures
                end with `SupersededError`.

        Raises:
            TiueError: too much is waiting, in all or of this client.
            LeftError: the worker is closed.
        """
        job = _Job(work, lane)
        with self._change:
            if self._closed:
                raise LeftError
            own = self._waiting.get(client, deque())
            needless = [old for old in own if old.lane in replaces]
            kept = deque(old for old in own if old.lane not in replaces)
            if len(kept) >= self.limits.each:
                raise TiueError(
                    f"you have {len(kept)} things waiting here already: let them finish"
                )
            if len(self) - len(needless) >= self.limits.waiting:
                raise TiueError(
                    f"too many are waiting ({self.limits.waiting}): try again in a moment"
                )
            # What was typed last is painted before the same client's lists and variations.
            (kept.appendleft if replaces else kept.append)(job)
            self._waiting[client] = kept
            self._change.notify()
        _end(needless, SupersededError())
        return job.future

    def leave(self, client: str) -> None:
        """Drop what a client has waiting, which frees its place."""
        with self._change:
            gone = self._waiting.pop(client, deque())
        _end(gone, LeftError())

    def close(self) -> None:
        """End after the work at hand."""
        with self._change:
            self._closed = True
            gone = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._change.notify()
        _end(gone, LeftError())
        self._thread.join()

    def __len__(self) -> int:
        """Pieces of work waiting."""
        return sum(len(jobs) for jobs in self._waiting.values())

    def _next(self) -> _Job | None:
        with self._change:
            while not self._waiting and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            client, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # at the end of the line
            return job

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                result = job.work(self.models)
            except BaseException as error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
            del job  # what it holds shall not live until the next one comes


def _end(jobs: Sequence[_Job] | deque[_Job], error: Exception) -> None:
    for job in jobs:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
