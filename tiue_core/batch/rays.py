"""`--engine ray`: the same batches on Ray, one worker per GPU, or several on CPUs.

Workers paint and encode; the process that was started plans, and writes files and manifest, so
nothing changes in a folder, whatever paints. It loads no student: what jobs must know of one the
first worker tells. The list is read as it is painted, two batches ahead of each worker. A worker
that dies is replaced and its batch painted again: that is Ray's own doing.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import TiueError
from ..io.images import PictureError, encode
from ..io.messages import first_line
from .engine import Batch
from .jobs import Job, Settings
from .paint import Outcome, Painter

_AHEAD = 2  # batches of a worker: one that is painted, and one that waits
_TRIES = 2  # more, of a batch whose worker died


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker comes by its student, as for `BatchSession.open`, and what it makes of it."""

    student: str
    digest: str  # the student must be the same there
    device: str | None = None
    dtype: str | None = None
    steps: int | None = None
    base: str | None = None
    kind: str = "png"
    metadata: bool = True


@dataclass(frozen=True)
class Painted:
    """What a worker made of a batch, and what it had to say."""

    outcomes: list[bytes | str]  # a file's bytes, or why there are none
    cut: int  # prompts that were longer than the text encoder reads
    notes: list[str]


class RayWorker:
    """An actor: loads the student when it is first asked for something, then paints."""

    def __init__(self, order: WorkerOptions) -> None:
        self.order = order
        self._session: Any = None

    def facts(self) -> tuple[Settings, str]:
        """What jobs must know of the student, and the device."""
        session = self._opened()
        return session.settings, session.painter.device

    def record(self, job: Job) -> dict[str, Any]:
        return self._opened().painter.record(job)

    def paint(self, jobs: Batch) -> Painted:
        """As ``Painter.paint``, encoded."""
        painter = self._opened().painter
        cut = painter.cut
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcomes = [
                self._encoded(job, one) for job, one in zip(jobs, painter.paint(jobs), strict=True)
            ]
        notes = [str(one.message) for one in caught if one.category is UserWarning]
        return Painted(outcomes, painter.cut - cut, notes)

    def _opened(self) -> Any:
        if self._session is None:
            from .session import BatchSession

            order = self.order
            session = BatchSession.open(
                order.student,
                device=order.device,
                dtype=order.dtype,
                steps=order.steps,
                base=order.base,
            )
            if session.settings.student_hash != order.digest:
                raise TiueError(f"the student '{order.student}' is another one on this machine")
            self._session = session
        return self._session

    def _encoded(self, job: Job, outcome: Outcome) -> bytes | str:
        if isinstance(outcome, str):
            return outcome
        metadata = self._opened().painter.record(job) if self.order.metadata else None
        try:
            return encode(outcome, metadata, self.order.kind)
        except PictureError as error:
            return str(error)


class RayPainter(Painter):
    """A ``Painter`` that is somewhere else, on a Ray cluster: the one at `address` ("auto": the one
    this machine is in), else one that is started here and ends with ``close``.

    Raises:
        TiueError: Ray is not installed, there is no cluster, or no such student in it.
    """

    def __init__(
        self,
        order: WorkerOptions,
        *,
        actors: int | None = None,
        address: str | None = None,
        report: Callable[[str], Any] = lambda line: None,
    ) -> None:
        if find_spec("ray") is None:
            raise TiueError("ray is not installed: pip install 'tiue[ray]'")
        import ray

        self._ray, self._order = ray, order
        self._mine = not ray.is_initialized()
        if self._mine:
            _start(ray, address, actors or 1)
        self._ready: list[Any] = []
        self._loading: dict[Any, Any] = {}  # workers, by what they will tell
        self._notes: set[str] = set()
        try:
            there = ray.cluster_resources()
            cards = 0 if order.device == "cpu" else int(there.get("GPU", 0))
            places = cards or int(there.get("CPU", 1))  # one more would be waited for for ever
            self._most = max(min(actors or cards or 1, places), 1)
            need: dict[str, Any] = {"num_gpus": 1} if cards else {"num_cpus": 1}
            self._worker = ray.remote(RayWorker).options(
                max_restarts=-1, max_task_retries=_TRIES, **need
            )
            report(f"ray: up to {self._most} workers, {'a GPU' if cards else 'a CPU'} each")
            self._add()
            settings, self._device = self._get(*self._loading)
        except BaseException:
            self.close()
            raise
        super().__init__(None, settings)

    @property
    def device(self) -> str:
        return self._device

    def paint(self, jobs: Sequence[Job]) -> list[Outcome]:
        """As ``Painter.paint``; the outcomes are the bytes of files."""
        return self._told(self._get(self._ready[0].paint.remote(list(jobs))))

    def record(self, job: Job) -> dict[str, Any]:
        """The metadata of a job's picture: enough to make it again."""
        return self._get(self._ready[0].record.remote(job))

    def engine(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Sequence[Outcome]]]:
        """An ``Engine``: the batches as they are done. Another worker is loaded whenever all those
        there are have something to do, so a short list keeps to a few."""
        painting: dict[Any, tuple[Any, Batch]] = {}
        died: list[Batch] = []  # with their workers; perhaps of the batch before
        for batch in batches:
            if not batch:
                yield [], ()
                continue
            yield from self._done(painting, died, wait=False)
            while (worker := self._free(painting)) is None:
                yield from self._done(painting, died, wait=True)
            painting[worker.paint.remote(batch)] = (worker, batch)
        while painting:
            yield from self._done(painting, died, wait=True)
        for batch in died:  # once more, each by itself
            try:
                yield batch, self.paint(batch)
            except _DiedError as error:
                yield batch, [str(error)] * len(batch)

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        if self._mine:
            return self._ray.shutdown()
        for worker in (*self._ready, *self._loading.values()):
            self._ray.kill(worker)

    def _add(self) -> None:
        worker: Any = self._worker.remote(self._order)
        self._loading[worker.facts.remote()] = worker

    def _free(self, painting: dict[Any, tuple[Any, Batch]]) -> Any:
        """A worker that may have another batch."""
        loads = dict.fromkeys(self._ready, 0)
        for worker, _ in painting.values():
            loads[worker] += 1
        idlest = min(loads, key=lambda worker: loads[worker])
        if loads[idlest] and len(loads) + len(self._loading) < self._most:
            self._add()
        return idlest if loads[idlest] < _AHEAD else None

    def _done(
        self, painting: dict[Any, tuple[Any, Batch]], died: list[Batch], wait: bool
    ) -> Iterator[tuple[Batch, list[Outcome]]]:
        pending = [*painting, *self._loading]
        if not pending:
            return
        # without a wait: those that are done by now
        found, _ = self._ray.wait(
            pending, num_returns=1 if wait else len(pending), timeout=None if wait else 0
        )
        for one in found:
            if one in self._loading:
                self._get(one)
                continue
            _, batch = painting.pop(one)
            try:
                outcomes = self._told(self._get(one))
            except _DiedError:
                died.append(batch)
            else:
                yield batch, outcomes

    def _get(self, reference: Any) -> Any:
        """What a worker answers; one that was loading is ready then.

        Raises:
            _DiedError: the worker died, each time that this was tried.
            TiueError: what the worker raised, or Ray itself.
        """
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayActorError:
            raise _DiedError("its worker died, each time: is the memory too small?") from None
        except errors.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, TiueError):
                raise TiueError(str(cause)) from None
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise TiueError(f"ray: {last[:300]}: run again, it goes on from there") from None
        if reference in self._loading:
            self._ready.append(self._loading.pop(reference))
        return answer

    def _told(self, painted: Painted) -> list[Outcome]:
        self.cut += painted.cut
        for note in painted.notes:
            if note not in self._notes:
                self._notes.add(note)
                warnings.warn(note, stacklevel=2)
        return list(painted.outcomes)


class _DiedError(TiueError):
    """A worker died while it did this, more often than it is tried again."""


def _start(ray: Any, address: str | None, actors: int) -> None:
    # Ray runs its workers at niceness 15: on a machine that does anything else they starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {}
    if not address:
        cpus = max(os.cpu_count() or 1, actors)  # Ray waits for ever for a CPU it has not
        options = {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **options,
        )
    except Exception as error:  # also a bare one, where it takes Ray too long to start
        raise TiueError(f"no Ray cluster: {first_line(error, 200)}") from None
