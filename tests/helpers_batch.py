"""A studio without a student: pictures of one colour, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tiue_core.batch.jobs import Job, Settings
from tiue_core.batch.options import RunOptions as Plan
from tiue_core.batch.session import BatchSession

SETTINGS = Settings("plain", "ab" * 32, (751, 501, 251, 1), 16, 16)


class PlainPainter:
    """Paints the colour of a seed; fails where the prompt says so."""

    device = "cpu"
    cut = 0

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def paint(self, jobs: Sequence[Job]) -> list[Any]:
        self.batches.append([job.prompt for job in jobs])
        assert len({job.group for job in jobs}) == 1
        return [self._one(job) for job in jobs]

    def record(self, job: Job) -> dict[str, Any]:
        return {"student": "plain", "student_hash": SETTINGS.student_hash, **job.record()}

    @staticmethod
    def _one(job: Job) -> Any:
        if "FAIL" in job.prompt:
            return "it was asked to fail"
        colour = tuple(job.seed >> shift & 255 for shift in (0, 8, 16))
        return Image.new("RGB", (job.width, job.height), colour)


def studio(**changes: Any) -> BatchSession:
    return BatchSession(PlainPainter(), replace(SETTINGS, **changes))  # type: ignore[arg-type]


def make(plan: Plan, folder: Path, **options: Any) -> tuple[Any, list[Any]]:
    """Run a plan to its end: the run and its results."""
    names = {"kind": "format", "metadata": "metadata", "retry_failed": "retry_failed"}
    changes = {names[key]: options.pop(key) for key in names if key in options}
    plan = replace(plan, **changes)
    with (options.pop("studio", None) or studio()).run(plan, folder, **options) as run:
        results = list(run)
    return run, results
