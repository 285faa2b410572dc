"""Jobs to pictures by a student's graphs: no torch, unless a job wants what they do not hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..export.metadata import check_size
from ..export.runtime import GraphSet
from ..students.vocabulary import notes
from .jobs import Job, Settings
from .paint import Outcome, Painter, record_of


class GraphPainter(Painter):
    """A ``Painter`` whose pictures come out of graphs.

    Args:
        graphs: of the student that the settings name.
        load: loads the student in PyTorch, for jobs with LoRAs, other decoders or odd sizes.
        folder: of the student.
    """

    def __init__(
        self, graphs: GraphSet, settings: Settings, load: Callable[[], Any], folder: Path
    ) -> None:
        super().__init__(None, settings)
        self.graphs, self._load, self.folder = graphs, load, folder
        self._said: set[str] = set()
        self._torch: Painter | None = None

    @property
    def device(self) -> str:
        return self.graphs.device

    def paint(self, jobs: Sequence[Job]) -> list[Outcome]:
        """As ``Painter.paint``."""
        if not jobs or not self._why_torch(jobs[0]):
            return super().paint(jobs)
        try:
            painter = self._in_torch(jobs[0])
        except TiueError as error:
            return [str(error)] * len(jobs)
        outcomes = painter.paint(jobs)
        self.cut += painter.cut
        painter.cut = 0
        return outcomes

    def record(self, job: Job) -> dict[str, Any]:
        """The metadata of a job's picture: enough to make it again."""
        if self._why_torch(job):
            return self._in_torch(job).record(job)
        settings, about = self.settings, self.graphs.about
        return {
            "student": settings.student,
            "student_revision": settings.revision,
            "student_hash": settings.student_hash,
            "steps": settings.steps,
            "dtype": settings.dtype,
            "device": self.device,
            "timesteps": list(about["timesteps"]),
            **record_of(job),
            **self.graphs.facts(),
        }

    def use(self, loras: tuple[tuple[str, float, str], ...]) -> None:
        """None are asked for: see ``_why_torch``."""

    def _images(self, jobs: Sequence[Job]) -> list[Any]:
        first = jobs[0]
        prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
        size, own = (first.width, first.height), (self.settings.width, self.settings.height)
        for note in notes(self.graphs.vocabulary(), self.folder, prompts, size, own):
            if note not in self._said:
                self._said.add(note)
                warnings.warn(note, stacklevel=2)
        return self.graphs(prompts, seeds, first.width, first.height)

    def _why_torch(self, job: Job) -> str:
        """What a job wants that the graphs do not hold; empty if they do."""
        if job.loras:
            return "a LoRA"
        if job.decoders != self.graphs.about["decoders"]:
            return f"{job.decoders} decoders"
        try:
            check_size(self.graphs.about, job.width, job.height)
        except TiueError:
            return f"{job.width} x {job.height} px"
        return ""

    def _in_torch(self, job: Job) -> Painter:
        if self._torch is None:
            why = self._why_torch(job)
            warnings.warn(f"the graph does not hold {why}: PyTorch paints such rows", stacklevel=3)
            self._torch = Painter(self._load(), replace(self.settings, dtype="float32"))
        return self._torch
