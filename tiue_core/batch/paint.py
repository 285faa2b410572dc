"""Jobs to pictures: a student, its LoRAs as the jobs ask for them, one batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import TiueError, out_of_memory
from ..students.lora import Lora, load_loras
from .jobs import Job, Settings

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
            import diffusers
            import torch

            settings = self.settings
            self._record = {
                "student": settings.student,
                "student_revision": settings.revision,
                "student_hash": settings.student_hash,
                "steps": settings.steps,
                "dtype": settings.dtype,
                "device": self.device,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
            }
        own = {"timesteps": self._timesteps(job), **record_of(job)}
        # what a system that is no student says of itself: its sampler, its guidance
        return {**self._record, **own, **getattr(self.pipe, "facts", {})}

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


def record_of(job: Job) -> dict[str, Any]:
    """What a job itself has to say in a picture's metadata."""
    loras = [
        {"name": Path(path).stem, "strength": strength, "hash": digest}
        for path, strength, digest in job.loras
    ]
    extra = {"template": job.template, "negative": job.negative, "columns": job.columns}
    from .. import __version__

    return {
        "prompt": job.prompt,
        "seed": job.seed,
        "width": job.width,
        "height": job.height,
        "loras": loras,
        "decoders": job.decoders,
        "job": job.id,
        "version": __version__,
        **{name: value for name, value in extra.items() if value},
    }


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return "out of memory: give a smaller width and height"
    return text[:300] or type(error).__name__
