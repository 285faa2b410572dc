"""``tiue generate --system``: any row of the registry paints like a student."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..baselines.find import Found, find
from ..baselines.load import load
from ..errors import TiueError, out_of_memory
from ..io.files import check_writable
from ..io.images import save_image
from .console import (
    Failed,
    ask_license,
    emit,
    progress,
)

BATCH = 4  # pictures per pass: saved, and counted by the bar, batch by batch


def generate(
    text: str,
    prompts: list[str],
    *,
    seed: int = 0,
    count: int = 1,
    width: int | None = None,
    height: int | None = None,
    out: Path = Path("out"),
    device: str | None = None,
    dtype: str | None = None,
    accept_license: bool = False,
    as_json: bool = False,
) -> None:
    """Paint ``count`` pictures of every prompt with the system that ``text`` names.

    Raises:
        TiueError: see `find` and `load`; `Failed` where some pictures were made already.
    """
    started, images = time.monotonic(), []
    found = find(text, ask_license(accept_license))
    check_writable(out)
    try:
        with progress("loading", None):
            pipe = load(found, device=device, dtype=dtype)
            record = record_of(found, pipe)
        jobs = [(prompt, one) for prompt in prompts for one in range(seed, seed + count)]
        with progress("painting", len(jobs)) as advance:
            for first in range(0, len(jobs), BATCH):
                part = jobs[first : first + BATCH]
                painted = pipe(
                    [prompt for prompt, _ in part],
                    seed=[one for _, one in part],
                    width=width,
                    height=height,
                    decoders=found.system.decoders,
                ).images
                for image, (prompt, one) in zip(painted, part, strict=True):
                    size = {"width": image.width, "height": image.height}
                    metadata = {**record, "prompt": prompt, "seed": one, **size}
                    path = save_image(image, out, metadata)
                    images.append({"path": str(path), "prompt": prompt, "seed": one, **size})
                    advance(1)
    except (TiueError, ValueError, RuntimeError) as error:
        result = _result(found, images, started)
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        if isinstance(error, RuntimeError):
            raise Failed("out of memory: ask for a smaller --width and --height", result) from error
        raise Failed(str(error), result) from error
    if as_json:
        emit(_result(found, images, started))
    else:
        for entry in images:
            print(entry["path"])


def record_of(found: Found, pipe: Any) -> dict[str, Any]:
    """What all pictures of one order say of their making."""
    from ..io.record import record

    revision = ", ".join(found.revisions) or (found.source.revision if found.source else None)
    source = SimpleNamespace(name=found.label, revision=revision)
    own = record(pipe, source, found.digest(), decoders=found.system.decoders)
    facts = getattr(pipe, "facts", {"system": found.system.name})
    return {**own, **facts}


def _result(found: Found, images: list[dict[str, Any]], started: float) -> dict[str, Any]:
    return {
        "images": images,
        "system": {
            "name": found.system.name,
            "licence": found.system.license,
            "revisions": list(found.revisions),
        },
        "seconds": round(time.monotonic() - started, 3),
    }
