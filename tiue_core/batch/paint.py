"""Jobs to pictures, one batch at a time: a student in PyTorch with its LoRAs as the jobs ask for
them, or its graphs, and then no torch unless a job wants what they do not hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.memory import out_of_memory
from ..errors import TiueError
from ..export.metadata import check_size
from ..io.record import versions
from ..students.lora import Lora, load_loras
from ..students.vocabulary import notes
from .jobs import Job, Settings

if TYPE_CHECKING:
    from ..export.runtime import GraphSet

Outcome = Any  # a PIL image, or a text that says why there is none


class Painter:
    """A loaded student. Pictures of one batch share size, LoRAs and decoders."""

    def __init__(self, pipe: Any, settings: Settings) -> None:
        self.pipe, self.settings = pipe, settings
        self._loras: tuple[tuple[str, float, str], ...] = ()
        self.cut = 0  # prompts of which the text encoder drops some words
        self._record: dict[str, Any] | None = None

    @property
    def device(self) -> str:
        return str(self.pipe.device.type)

    def paint(self, jobs: Sequence[Job]) -> list[Outcome]:
        """One outcome per job. What goes wrong with one job leaves the others alone."""
        try:
            self.use(jobs[0].loras)
            return list(self._call(jobs))
        except TiueError as error:  # a LoRA that does not fit: the same for all of them
            return [str(error)] * len(jobs)
        except (ValueError, RuntimeError) as error:
            if len(jobs) == 1:
                return [_why(error)]
        # Halves, until what is wrong is alone; and a batch that was too large for the memory fits.
        middle = (len(jobs) + 1) // 2
        return [*self.paint(jobs[:middle]), *self.paint(jobs[middle:])]

    def record(self, job: Job) -> dict[str, Any]:
        """The metadata of a job's picture: enough to make it again."""
        if self._record is None:
            self._record = {**self._student(), **versions()}
        own = {"timesteps": self._timesteps(job), **job.record()}
        # what a system that is no student says of itself: its sampler, its guidance
        return {**self._record, **own, **getattr(self.pipe, "facts", {})}

    def _student(self) -> dict[str, Any]:
        """What is the same for all pictures, whatever paints them."""
        settings = self.settings
        return {
            "student": settings.student,
            "student_revision": settings.revision,
            "student_hash": settings.student_hash,
            **({"base": settings.base} if settings.base else {}),
            "steps": settings.steps,
            "dtype": settings.dtype,
            "device": self.device,
        }

    def _timesteps(self, job: Job) -> list[int]:
        """Those that were decoded."""
        if job.decoders == "exact":
            return list(self.settings.timesteps)
        return self.pipe.schedule(self.settings.steps, job.decoders).timesteps.tolist()

    def _call(self, jobs: Sequence[Job]) -> Iterator[Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            images = self._images(jobs)
        for one in caught:
            if str(one.message).startswith("the prompt is longer"):
                self.cut += 1  # told once, when all is done, and not a thousand times
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return iter(images)

    def _images(self, jobs: Sequence[Job]) -> list[Any]:
        first = jobs[0]
        return self.pipe(
            [job.prompt for job in jobs],
            seed=[job.seed for job in jobs],
            width=first.width,
            height=first.height,
            steps=self.settings.steps,
            decoders=first.decoders,
            batch_size=len(jobs),
        ).images

    def use(self, loras: tuple[tuple[str, float, str], ...]) -> None:
        """Have these LoRAs loaded and no others: (path, strength, SHA-256) each."""
        if loras == self._loras:
            return
        if self._loras:
            self.pipe.unload_lora_weights()
        self._loras = ()
        load_loras(self.pipe, [Lora(Path(path), strength) for path, strength, _ in loras])
        self._loras = loras


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
        return {
            **self._student(),
            "timesteps": list(self.graphs.about["timesteps"]),
            **job.record(),
            **self.graphs.facts(),
        }

    def use(self, loras: tuple[tuple[str, float, str], ...]) -> None:
        """None are asked for: see ``_why_torch``."""

    def _images(self, jobs: Sequence[Job]) -> list[Any]:
        first = jobs[0]
        prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
        size, own = (first.width, first.height), (self.settings.width, self.settings.height)
        for note in notes(self.graphs.tokenizer.get_vocab(), self.folder, prompts, size, own):
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


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return "out of memory: give a smaller width and height"
    return text[:300] or type(error).__name__
