"""The students that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STICKERS = Path(__file__).parents[1] / "stickers"

AcceptLicense = bool | Callable[[str], bool]
"""Whether the licence is accepted, or a function that shows the text and asks."""


@dataclass(frozen=True)
class Student:
    """An entry of the registry. `revision` is the hub commit, where it is known beforehand."""

    name: str
    about: str
    license: str
    base: str = ""
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None

    @property
    def licenses(self) -> str:
        """Its own, and its base model's."""
        return self.license + self.base

    def terms(self) -> str:
        """The licence in one line, as shown before a download."""
        return f"{self.name} ({self.hub_id or 'built in'}): {self.licenses}"


NON_COMMERCIAL = (
    "CC BY-NC 4.0, non-commercial use only, https://creativecommons.org/licenses/by-nc/4.0/"
)
REGISTRY = {
    student.name: student
    for student in (
        Student(
            "stickers",
            "the built-in miniature: things on plain backgrounds, in seconds on a CPU",
            "Apache-2.0",
            folder=STICKERS / "student",
        ),
        Student(
            "loopfree-sd2.1-base",
            "the paper authors' student of Stable Diffusion 2.1 base, 512 px",
            NON_COMMERCIAL,
            base="; base model Stable Diffusion 2.1: CreativeML Open RAIL++-M",
            hub_id="senmaonk/loopfree-sd2.1-base",
        ),
        Student(
            "loopfree-sd1.5",
            "the paper authors' student of Stable Diffusion 1.5, 512 px",
            NON_COMMERCIAL,
            base="; base model Stable Diffusion 1.5: CreativeML Open RAIL-M",
            hub_id="senmaonk/loopfree-sd1.5",
        ),
    )
}
# Loadable by name, to compare `stickers` with, but not in the registry. They share all with it but
# the UNet: the teacher's own, and the teacher's with a low-rank difference, for one step.
TEACHER, ONE_STEP = "stickers-teacher", "stickers-one-step"
