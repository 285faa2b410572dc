"""Prompts to PNGs in a folder: what every kind of `tiue generate` ends in, whatever paints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.memory import out_of_memory
from ..errors import TiueError
from ..io.images import save_image
from .console import Failed, emit, progress

BATCH = 4  # pictures per pass: saved, and counted by the bar, batch by batch
OTHER_WEIGHTS = "that picture was made with other weights, so it may differ"

Paint = Callable[[list[str], list[int], int | None, int | None], Sequence[Any]]
"""Prompts, a seed for each, width and height to PIL images."""


@dataclass
class PictureOptions:
    """What was asked for: on the command line, or by an image made earlier."""

    prompts: list[str]
    student: str = "stickers"
    seed: int = 0
    count: int = 1
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    decoders: str = "exact"
    draft: bool = False
    optimize: bool = False
    negative: str = ""
    guidance: float = 1.0
    out: Path = Path("out")
    device: str | None = None
    dtype: str | None = None
    engine: str = "auto"
    base: str | None = None
    accept_license: bool = False
    loras: list[Any] = field(default_factory=list)
    student_hash: str | None = None
    json: bool = False

    def take(self, values: dict[str, Any]) -> None:
        """Those values that say something."""
        for name, value in values.items():
            if value is not None:
                setattr(self, name, value)


def make(
    options: PictureOptions,
    prepare: Callable[[], tuple[Paint, dict[str, Any]]],
    about: dict[str, Any],
    started: float,
) -> list[dict[str, Any]]:
    """Paint and save, batch by batch; print what was made.

    Args:
        prepare: loads what paints; returns it, and the metadata that all pictures share.
        about: more for the JSON document.
        started: `time.monotonic()` when the command began.

    Returns:
        A picture's path, prompt, seed and size each.

    Raises:
        Failed: with what was made until then.
    """
    images: list[dict[str, Any]] = []

    def result() -> dict[str, Any]:
        return {"images": images, **about, "seconds": round(time.monotonic() - started, 3)}

    try:
        paint, record = prepare()
        seeds = range(options.seed, options.seed + options.count)
        jobs = [(prompt, seed) for prompt in options.prompts for seed in seeds]
        with progress("painting", len(jobs)) as advance:
            for first in range(0, len(jobs), BATCH):
                part = jobs[first : first + BATCH]
                prompts, own_seeds = [prompt for prompt, _ in part], [seed for _, seed in part]
                painted = paint(prompts, own_seeds, options.width, options.height)
                for image, (prompt, seed) in zip(painted, part, strict=True):
                    own = {"prompt": prompt, "seed": seed}
                    own |= {"width": image.width, "height": image.height}
                    path = save_image(image, options.out, {**record, **own})
                    images.append({"path": str(path), **own})
                    advance(1)
    except KeyboardInterrupt as error:
        there = f", in {options.out}" if images else ""
        total = options.count * len(options.prompts)
        why = f"stopped: {len(images)} of {total} made{there}"
        raise Failed(why, result(), 130) from error
    except (TiueError, ValueError) as error:  # the pipeline's ValueErrors are one line each
        raise Failed(str(error), result()) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        why = "out of memory: ask for a smaller --width and --height"
        raise Failed(why, result()) from error
    if options.json:
        emit(result())
    else:
        for each in images:
            print(each["path"])
    return images
