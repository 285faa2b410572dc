"""``tiue generate --system``: any row of the registry paints like a student."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ..baselines.find import Found, find
from ..baselines.load import load
from ..io.files import check_writable
from .console import ask_license, progress
from .pictures import Paint, PictureOptions, make


def generate(text: str, options: PictureOptions, started: float) -> None:
    """Paint pictures of every prompt with the system that ``text`` names.

    Raises:
        TiueError: see `find` and `load`; `Failed` where some pictures were made already.
    """
    found = find(text, ask_license(options.accept_license))
    check_writable(options.out)

    def prepare() -> tuple[Paint, dict[str, Any]]:
        with progress("loading", None):
            pipe = load(found, device=options.device, dtype=options.dtype)
            record = record_of(found, pipe)

        def paint(prompts: list[str], seeds: list[int], *sides: int | None) -> Any:
            size = dict(zip(("width", "height"), sides, strict=True))
            return pipe(prompts, seed=seeds, decoders=found.system.decoders, **size).images

        return paint, record

    system = {"name": found.system.name, "licence": found.system.license}
    about = {"system": {**system, "revisions": list(found.revisions)}}
    make(options, prepare, about, started)


def record_of(found: Found, pipe: Any) -> dict[str, Any]:
    """What all pictures of one order say of their making."""
    from ..io.record import record

    source = SimpleNamespace(name=found.label, revision=found.revision)
    own = record(pipe, source, found.digest(), decoders=found.system.decoders)
    facts = getattr(pipe, "facts", {"system": found.system.name})
    return {**own, **facts}
