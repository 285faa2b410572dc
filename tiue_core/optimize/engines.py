"""Which engine runs a set of graphs: the fastest of those installed that paints what torch paints.

When an engine meets a set for the first time it paints the picture that was made by torch when the
set was written, and is held against it:

    float32     latents within LATENTS of torch's, relative; the picture within 1 of 255
    bfloat16    the picture at least DECIBELS of PSNR from it

What differs more is not taken, and says so once. Errors and times are remembered by set, engine,
version, precision and processor. No torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TiueError
from ..export import metadata
from ..export.metadata import SET
from ..export.runtime import GraphSet
from ..export.sessions import ENGINES, installed, need
from . import cache

CHOICES = ("auto", "torch", *sorted(ENGINES))
LATENTS = 1e-3
DECIBELS = 40.0
_tried: dict[tuple[Path, str, str], GraphSet] = {}  # open already, so one of them need not be twice


@dataclass(frozen=True)
class Measured:
    """An engine with a set, on this machine."""

    engine: str
    precision: str
    latents: float  # relative error
    decibels: float  # PSNR of the picture
    levels: float  # of 255, the largest difference
    opened: float  # seconds of CPU time until the first picture: other work beside it adds none
    picture: float  # seconds for each that follows

    @property
    def right(self) -> bool:
        """Whether it paints what torch paints."""
        if self.precision == "float32":
            return self.latents <= LATENTS and self.levels <= 1
        return self.decibels >= DECIBELS


def choose(
    folder: Path,
    engine: str = "auto",
    precision: str | None = None,
    pictures: float = float("inf"),
    without: tuple[str, Callable[[str], float]] | None = None,
) -> GraphSet | None:
    """A set with the engine that has ``pictures`` done first, or none where none is right.

    Args:
        engine: of ``CHOICES``.
        precision: "float32" or "bfloat16"; by default whichever is faster and right.
        without: what paints where there is no engine, its name and version, and the seconds that
            it takes for a picture of a prompt: with "auto", no slower engine is taken.

    Raises:
        TiueError: the engine asked for is not installed.
    """
    versions = installed() if engine == "auto" else {engine: ENGINES[engine].version()}
    right = [one for one in _measured(folder, versions, precision) if one.right]
    if not right:
        return None

    def seconds(one: Measured) -> float:
        return one.picture if pictures == float("inf") else one.opened + pictures * one.picture

    best = min(right, key=seconds)
    if engine == "auto" and without is not None and best.picture >= _seconds(folder, *without):
        _tried.clear()
        return None
    graphs = _tried.get((folder, best.engine, best.precision))
    _tried.clear()
    return graphs or GraphSet(folder, best.engine, best.precision)


def kept(
    engine: str, precision: str | None = None, pictures: float = float("inf"), **wanted: Any
) -> GraphSet | None:
    """The graphs that are kept of a student (see ``cache.find``), with the engine of ``choose``.

    Raises:
        TiueError: see ``check``.
    """
    check(engine)
    folder = cache.find(**wanted)
    return None if folder is None else choose(folder, engine, precision, pictures)


def check(engine: str) -> str:
    """``engine`` if it is one and here.

    Raises:
        TiueError: there is no such engine, or it is not installed.
    """
    if engine not in CHOICES:
        raise TiueError(f"no engine '{engine}': give {', '.join(CHOICES)}")
    if engine in ENGINES:
        need(engine)
    return engine


def _measured(
    folder: Path, versions: Mapping[str, str], precision: str | None
) -> Iterator[Measured]:
    """What engines do with a set: remembered, or tried now; those left out that cannot run it."""
    remembered = cache.remembered()
    for engine, version in versions.items():
        for kind in ENGINES[engine].precisions:
            if precision not in (None, kind):
                continue
            key = _key(folder, engine, version, kind)
            known = remembered.get(key)
            try:
                one = None if known is None else Measured(**known)
            except TypeError:  # of another version of this file
                one = None
            if one is None:
                one = _try(folder, engine, kind)
                cache.remember(key, one if one is None else asdict(one))
            if one is not None:
                yield one


def _seconds(folder: Path, name: str, measure: Callable[[str], float]) -> float:
    """Of one picture without an engine: remembered, or measured now."""
    key = _key(folder, name)
    known = cache.remembered().get(key)
    if not isinstance(known, float):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of the prompt was said of the graph's
            known = measure(metadata.read_set(folder)[0]["check"]["prompt"])
        cache.remember(key, known)
    return known


def _key(folder: Path, *of: str) -> str:
    """A name for what was measured of a set on this machine."""
    content = hashlib.sha256((folder / f"{SET}.json").read_bytes()).hexdigest()[:16]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return " ".join((content, *of, platform.machine(), str(os.cpu_count()), threads)).strip()


def _try(folder: Path, engine: str, precision: str) -> Measured | None:
    from PIL import Image

    graphs = GraphSet(folder, engine, precision)
    wanted = np.asarray(graphs.about["check"]["latents"], np.float32)
    began = time.process_time()
    try:
        picture, latents = graphs.run([graphs.about["check"]["prompt"]], [0])
    except Exception as error:  # an engine's own have no common base
        if precision == "float32":
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            warnings.warn(f"{engine} cannot run this student ({first}): not taken", stacklevel=4)
        return None
    opened, seconds = time.process_time() - began, []
    for _ in range(2):
        began = time.perf_counter()
        graphs.run([graphs.about["check"]["prompt"]], [0])
        seconds.append(time.perf_counter() - began)
    _tried[folder, engine, precision] = graphs
    with Image.open(folder / f"{SET}.png") as image:
        target = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    off = (picture[0] * 255).round() - target
    squares = float(np.mean((picture[0] * 255 - target) ** 2))
    found = latents.ravel()[: len(wanted)]
    one = Measured(
        engine,
        precision,
        latents=float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
        decibels=float(10 * np.log10(255**2 / max(squares, 1e-9))),
        levels=float(np.abs(off).max()),
        opened=opened,
        picture=min(seconds),
    )
    if not one.right:
        warnings.warn(
            f"{engine} in {precision} is {one.decibels:.1f} dB and {one.levels:.0f} of 255 from "
            "torch: not taken",
            stacklevel=4,
        )
    return one
