"""What a system is: files, sampler, timesteps, guidance, size, licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..students.registry import REGISTRY as STUDENTS


@dataclass(frozen=True)
class Part:
    """Files that a system is made of.

    Args:
        kind: "pipeline", a diffusers folder; "base", one whose UNet another part replaces; "unet",
            a UNet's folder or its weights in one file; "lora"; "images", a folder of pictures.
        hub_id: where they can be had; "" where they cannot.
        licence: of these files.
        file: the one that is needed of a repository that is no diffusers folder.
        revision: the hub commit; None: the one that the first download pins (see `hub`).
    """

    kind: str
    hub_id: str = ""
    license: str = ""
    file: str = ""
    revision: str | None = None

    @property
    def probe(self) -> str:
        """A file that is there where the part is."""
        return self.file or ("config.json" if self.kind == "unet" else "model_index.json")

    def terms(self) -> str:
        """The licence in one line, as shown before a download."""
        return f"{self.hub_id}: {self.license}, https://huggingface.co/{self.hub_id}"


@dataclass(frozen=True)
class System:
    """A row. `pixels` is the native side; `timesteps` are what the UNet sees, no others.

    Args:
        sampler: a key of `load.SCHEDULERS`, or a recipe of ours ("faster", "flow", "one-step"), or
            "one-way" (a TiUE student), or "images" (a folder of pictures).
        guidance: classifier-free guidance; 1 is without. With `embedded` the UNet takes it as an
            input, w = guidance - 1, and runs once a step.
        eta: noise put back at every step, where the sampler has such a number.
        prediction: what the UNet's output means.
        paper: the row of Tables S1 and S2, by the name it has in `evaluate/paper/`.
        student: of `students`, or a folder; the row's files where it has no parts on the hub.
        xl: SDXL's layout, two text encoders.
    """

    name: str
    about: str
    sampler: str
    steps: int = 1
    timesteps: tuple[float, ...] = ()
    guidance: float = 1.0
    embedded: bool = False
    eta: float | None = None
    prediction: str = "epsilon"
    pixels: int = 512
    parts: tuple[Part, ...] = ()
    paper: str = ""
    student: str = ""
    decoders: str = "exact"
    note: str = ""
    xl: bool = False

    @property
    def license(self) -> str:
        """All licences that come with it."""
        if self.student in STUDENTS:
            return STUDENTS[self.student].licenses
        found = dict.fromkeys(part.license for part in self.parts if part.license)
        return "; ".join(found) or "that of the pictures"

    def record(self) -> dict[str, Any]:
        """Everything above as JSON; what decides the picture is in here."""
        return {
            "name": self.name,
            "about": self.about,
            "sampler": self.sampler,
            "steps": self.steps,
            "timesteps": list(self.timesteps),
            "guidance": self.guidance,
            "embedded_guidance": self.embedded,
            "eta": self.eta,
            "prediction": self.prediction,
            "pixels": self.pixels,
            "student": self.student or None,
            "decoders": self.decoders if self.sampler == "one-way" else None,
            "files": [
                {
                    "kind": part.kind,
                    "hub_id": part.hub_id or None,
                    "file": part.file or None,
                    "revision": part.revision,
                    "licence": part.license or None,
                }
                for part in self.parts
            ],
            "licence": self.license,
            "paper": self.paper or None,
            "note": self.note or None,
        }
