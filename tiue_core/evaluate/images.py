"""A system's pictures of a data set, painted through `tiue_core.batch`, so a killed run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..baselines.find import Found
from ..batch.jobs import Job, Settings, job_id
from ..batch.manifest import Manifest
from ..batch.options import Planner, RunOptions
from ..batch.paint import Painter
from ..batch.schema import BadRow
from ..batch.session import BatchSession, settings_of
from ..errors import TiueError


@dataclass(frozen=True)
class Prompts(RunOptions):
    """Prompts word for word (no wildcards), a picture each; the n-th has seed ``first`` + n.

    Args:
        texts: the prompts.
        first: the first seed.
        side: px, of both sides.
    """

    texts: tuple[str, ...] = ()
    first: int = 0
    side: int = 0

    def jobs(self, settings: Settings, planner: Planner | None = None) -> Iterator[Job | BadRow]:
        decides = {
            "negative": "",
            "width": self.side,
            "height": self.side,
            "decoders": self.decoders,
        }
        for index, text in enumerate(self.texts):
            seed = self.first + index
            yield Job(
                id=job_id(settings, prompt=text, seed=seed, loras=[], **decides),
                prompt=text,
                negative="",
                seed=seed,
                width=self.side,
                height=self.side,
                loras=(),
                decoders=self.decoders,
                file=f"{index:05d}",
                index=index,
                line=index + 1,
            )

    @property
    def name(self) -> str:
        return "the data set"

    def fingerprint(self) -> str:
        parts = [self.texts, self.first, self.side, self.decoders, self.batch_size]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def own_side(pipe: Any) -> int:
    """The side in px that a system is at home at."""
    pixels = getattr(pipe, "pixels", None)  # a SystemPipeline's
    return pixels or int(pipe.unet.config.sample_size) * pipe.vae_scale_factor


def session_of(found: Found, pipe: Any, side: int) -> BatchSession:
    """A session that paints with this system."""
    name = found.label
    if found.system.sampler == "one-way" and found.source is not None:
        name = found.source.name  # what `tiue generate --like` looks for
    settings = settings_of(pipe, name, found.digest(), None, found.revision)
    settings = dataclasses.replace(settings, width=side, height=side)
    return BatchSession(Painter(pipe, settings), settings)


def paint(
    found: Found,
    pipe: Any,
    prompts: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    side: int | None = None,
    batch_size: int = 8,
    advance: Callable[[int], Any] = lambda by: None,
) -> list[Path]:
    """One picture a prompt in ``folder``, those that are there already left as they are.

    Raises:
        TiueError: a picture could not be painted, or the folder is another run's.
    """
    side = side or own_side(pipe)
    plan = Prompts(
        source="",
        texts=tuple(prompts),
        first=seed,
        side=side,
        decoders=found.system.decoders,
        batch_size=batch_size,
        retry_failed=True,
    )
    session = session_of(found, pipe, side)
    with session.run(plan, folder) as run:
        for result in run:
            if result.kind == "failed":
                raise TiueError(f"{found.label} cannot paint: {result.message}")
            advance(1)
    return painted(plan, session.settings, folder)


def painted(plan: Prompts, settings: Settings, folder: Path) -> list[Path]:
    """The plan's pictures in its order.

    Raises:
        TiueError: some are missing.
    """
    wanted = {job.id: n for n, job in enumerate(plan.jobs(settings)) if isinstance(job, Job)}
    files: dict[int, Path] = {}
    for record in Manifest(folder, plan.fingerprint()).made():
        if record["id"] in wanted:
            files[wanted[record["id"]]] = folder / record["file"]
    if len(files) < len(wanted):
        raise TiueError(
            f"{folder} lacks {len(wanted) - len(files)} of {len(wanted)} pictures: run again"
        )
    return [files[n] for n in range(len(wanted))]
