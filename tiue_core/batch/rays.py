"""`--engine ray`: the same batches on Ray Data, one actor per GPU, or several on CPUs.

Workers paint and encode; the process that was started writes files and manifest, so nothing
changes in a folder, whatever paints. A worker that dies is replaced and its batch painted again:
that is Ray's own doing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import TiueError
from ..io.images import PictureError, encode
from .engine import Batch, Engine
from .jobs import Job


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker comes by its student: what `BatchSession.open` takes."""

    student: str
    digest: str  # the student must be the same there
    device: str | None = None
    dtype: str | None = None
    steps: int | None = None
    base: str | None = None


class RayWorker:
    """An actor: loads the student once, then paints batch after batch."""

    def __init__(self, order: WorkerOptions, kind: str, metadata: bool) -> None:
        from .session import BatchSession

        self.session = BatchSession.open(
            order.student,
            device=order.device,
            dtype=order.dtype,
            steps=order.steps,
            base=order.base,
        )
        if self.session.settings.student_hash != order.digest:
            raise TiueError(f"the student '{order.student}' is another one on this machine")
        self.kind, self.metadata = kind, metadata

    def __call__(self, rows: dict[str, Any]) -> Any:
        """{"batch": one JSON list of jobs} to a table of job, data and error, a row a picture."""
        import pyarrow

        batch = [Job.from_json(text) for text in json.loads(rows["batch"][0])]
        painter, table = self.session.painter, []
        for job, outcome in zip(batch, painter.paint(batch), strict=True):
            metadata = painter.record(job) if self.metadata else None
            good = not isinstance(outcome, str)
            try:
                data = encode(outcome, metadata, self.kind) if good else b""
            except PictureError as error:
                outcome, data, good = str(error), b"", False
            table.append({"job": job.to_json(), "data": data, "error": "" if good else outcome})
        columns = {"job": pyarrow.string(), "data": pyarrow.binary(), "error": pyarrow.string()}
        return pyarrow.Table.from_pylist(table, schema=pyarrow.schema(columns))


def ray_engine(
    order: WorkerOptions,
    *,
    actors: int | None = None,
    address: str | None = None,
    kind: str = "png",
    metadata: bool = True,
    report: Callable[[str], Any] = lambda line: None,
) -> Engine:
    """An engine on a Ray cluster: the one at `address` ("auto": the one this machine is in), else
    one that is started here and ends with the run.

    Raises:
        TiueError: Ray is not installed, or there is no cluster.
    """
    if find_spec("ray") is None:
        raise TiueError("ray is not installed: pip install 'tiue[ray]'")

    def engine(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Sequence[Any]]]:
        import ray

        # Ray's own view of a list: one row a batch, so that no batch is cut.
        rows = []
        for batch in batches:
            if batch:
                rows.append({"batch": json.dumps([job.to_json() for job in batch])})
            else:
                yield [], ()
        if not rows:
            return
        mine = not ray.is_initialized()
        if mine:
            _start(ray, address, actors or 1)
        try:
            cards = 0 if order.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
            on_gpu = cards > 0
            count = min(actors or cards or 1, len(rows))
            report(f"ray: {count} actors, {'a GPU' if on_gpu else 'a CPU'} each")
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            # One block a batch: what is painted comes back at once, not when a block is full.
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                RayWorker,
                fn_constructor_args=(order, kind, metadata),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                num_gpus=1 if on_gpu else None,
                num_cpus=None if on_gpu else 1,
            )
            for row in data.iter_rows():
                yield [Job.from_json(row["job"])], [row["error"] or bytes(row["data"])]
        except ray.exceptions.RayError as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise TiueError(f"ray: {last[:300]}: run again, it goes on from there") from None
        finally:
            if mine:
                ray.shutdown()

    return engine


def _start(ray: Any, address: str | None, actors: int) -> None:
    # Ray runs its workers at niceness 15: on a machine that does anything else they starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {}
    if not address:
        cpus = max(os.cpu_count() or 1, actors + 1)  # Ray waits for ever for a CPU it has not
        options = {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **options,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TiueError(f"no Ray cluster: {first[:200]}") from None
