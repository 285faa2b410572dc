"""Rows to jobs: one job is one picture, and its id is the hash of all that decides it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import __version__


@dataclass(frozen=True)
class Settings:
    """What all jobs of a run share, as far as it decides the picture."""

    student: str
    student_hash: str  # weights and scheduler config: see students.Source.content_hash
    timesteps: tuple[int, ...]  # K of them
    width: int  # the student's own, where a row names none
    height: int
    dtype: str = "float32"
    steps: int | None = None  # K as asked for
    revision: str | None = None
    vae: str = ""  # a VAE other than the student's own
    factor: int = 8  # px per latent


@dataclass(frozen=True)
class Job:
    """One picture. `id` is over what decides it; the rest says where it goes and whence it came."""

    id: str
    prompt: str
    negative: str
    seed: int
    width: int
    height: int
    loras: tuple[tuple[str, float, str], ...]  # (path, strength, SHA-256)
    decoders: str
    file: str  # relative, with "/", without suffix
    index: int  # of the picture in the list
    line: int
    template: str = ""  # the prompt before wildcards, where it had some
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def group(self) -> tuple[Any, ...]:
        """What must be equal within a batch."""
        return (self.width, self.height, self.loras, self.decoders)

    def record(self) -> dict[str, Any]:
        """What a job itself has to say in a picture's metadata."""
        loras = [
            {"name": Path(path).stem, "strength": strength, "hash": digest}
            for path, strength, digest in self.loras
        ]
        extra = {"template": self.template, "negative": self.negative, "columns": self.columns}
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "loras": loras,
            "decoders": self.decoders,
            "job": self.id,
            "version": __version__,
            **{name: value for name, value in extra.items() if value},
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        loras = tuple((path, strength, digest) for path, strength, digest in values["loras"])
        return cls(**{**values, "loras": loras})


def job_id(settings: Settings, **decides: Any) -> str:
    """SHA-256, the first 128 bits as hex, over everything that decides the picture."""
    shared = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name in ("student", "revision", "width", "height", "steps", "factor"):
        del shared[name]  # names, or told by the job itself
    text = json.dumps({**shared, **decides}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
