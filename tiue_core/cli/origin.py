"""`tiue generate --like`: a picture that says how it was made, and is to be made again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TiueError
from ..io.images import read_metadata

if TYPE_CHECKING:
    from ..students.lora import Lora

_SETTINGS = (  # as the metadata and `PictureOptions` both call them
    *("seed", "width", "height", "student", "student_hash", "steps", "decoders", "draft"),
    *("dtype", "negative", "guidance"),
)


@dataclass(frozen=True)
class Origin:
    """A picture's metadata, read once; all that is made of them is here."""

    path: Path
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Origin:
        """
        Raises:
            TiueError: the picture does not say how it was made, or it was made in ComfyUI.
        """
        metadata = read_metadata(path)
        if metadata.get("made_in") == "ComfyUI":  # whose graph says more than settings can
            raise TiueError(f"{path} was made in ComfyUI: drop it onto ComfyUI's page")
        return cls(path, metadata)

    def settings(self) -> dict[str, Any]:
        """What `PictureOptions.take` takes; None where the picture does not say."""
        own = {name: self.metadata.get(name) for name in _SETTINGS}
        return {"prompts": [self.metadata["prompt"]], **own}

    @property
    def system(self) -> str | None:
        """The system that painted it, where that was no student."""
        return self.metadata.get("system")

    def base(self) -> str | None:
        """The base of a single file, where it can still be found by its name."""
        from ..students.resolve import find

        with suppress(TiueError):
            return self.metadata.get("base") and find(self.metadata["base"]).name
        return None  # looked for as it was then; the hash tells

    def loras(self, given: Sequence[Lora]) -> list[Lora]:
        """Its LoRAs in its order and strengths, found among those given; then the others.

        Raises:
            TiueError: one is not among them.
        """
        found = []
        for made_with in self.metadata.get("loras") or []:
            lora = next((one for one in given if one.is_one(made_with["hash"])), None)
            if lora is None:
                name = made_with["name"]
                raise TiueError(f"{self.path} was made with LoRA '{name}': add --lora FILE")
            found.append(replace(lora, strength=made_with["strength"]))
        known = [one.path for one in found]
        return found + [one for one in given if one.path not in known]
