"""How much of the pipeline's own speed a whole run of a prompt list keeps.

    python benchmarks/batch.py                     # images/s, bare and whole, and their ratio
    python benchmarks/batch.py --rows 100000       # the length of a list: memory, first image
    python benchmarks/batch.py --rows 100000 --ray # the same with a Ray worker

Bare: `TiuePipeline.__call__` in a loop, its pictures thrown away. Whole: the list read, jobs made,
PNGs encoded and brought to the disk, manifest, and at the end contact sheets and index. The two
take turns, since the machine may do other things; CPU seconds are told beside elapsed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = ("blue", "red", "green", "pink", "yellow", "white", "black", "orange")
THINGS = ("cat", "gift", "boat", "star", "fox", "apple", "house", "moon")


def prompt(i: int) -> str:
    return f"a {THINGS[i % 8]} on a {COLOURS[i // 8 % 8]} background"


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Elapsed and CPU seconds."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def throughput(student: str, batch_size: int, batches: int, rounds: int) -> dict[str, Any]:
    from tiue_core.batch.options import RunOptions
    from tiue_core.batch.overview import contact_sheets, html_index
    from tiue_core.batch.session import BatchSession

    studio = BatchSession.open(student, device="cpu")
    images = batch_size * batches
    rows = "".join(f"{prompt(i)} --seed {i}\n" for i in range(images))

    def bare() -> None:
        for first in range(0, images, batch_size):
            part = range(first, first + batch_size)
            studio.painter.pipe([prompt(i) for i in part], seed=list(part), batch_size=batch_size)

    def whole() -> None:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            with studio.run(RunOptions(rows, batch_size=batch_size), Path(folder)) as run:
                made = sum(result.kind == "made" for result in run)
            assert made == images
            html_index(Path(folder), run.manifest.made())
            contact_sheets(Path(folder), run.manifest.made())

    bare()  # warm
    pairs = [(timed(bare), timed(whole)) for _ in range(rounds)]
    bares, wholes = zip(*pairs, strict=True)
    speeds = [images / statistics.median(one[0] for one in kind) for kind in (bares, wholes)]
    return {
        "images_per_round": images,
        "bare_images_per_s": round(speeds[0], 3),
        "whole_images_per_s": round(speeds[1], 3),
        "ratio_elapsed": round(statistics.median(b[0] / w[0] for b, w in pairs), 3),
        "ratio_cpu": round(statistics.median(b[1] / w[1] for b, w in pairs), 3),
        "ratios_elapsed": [round(b[0] / w[0], 3) for b, w in pairs],
    }


def with_ray(student: str, rows: int, seconds: float) -> dict[str, Any]:
    """The first picture of a long list, and this process's memory, where a Ray worker paints."""
    from tiue_core.batch.options import RunOptions
    from tiue_core.batch.rays import RayPainter, WorkerOptions
    from tiue_core.batch.session import BatchSession
    from tiue_core.students.resolve import find

    painter = RayPainter(WorkerOptions(student, find(student).content_hash(), "cpu", "float32"))
    studio = BatchSession(painter, painter.settings)
    studio.seconds_per_picture(RunOptions("warm"))
    memory = [_resident()]
    with tempfile.TemporaryDirectory(dir=".") as place:
        path = Path(place) / "list.csv"
        with path.open("w") as file:
            file.write("prompt,seed\n")
            file.writelines(f"{prompt(i)},{i}\n" for i in range(rows))
        began, first = time.perf_counter(), 0.0
        with studio.run(RunOptions(path), Path(place) / "real", engine=painter.engine) as run:
            for count, _ in enumerate(run):
                first = first or time.perf_counter() - began
                if count % 50 == 0:
                    memory.append(_resident())
                if time.perf_counter() - began > seconds:
                    run.cancel()
        painter.close()
        return {
            "rows": rows,
            "first_image_s": round(first, 2),
            "painted_meanwhile": run.counts.made,
            "resident_mb": [round(size) for size in memory],
            "torch_is_loaded_here": "torch" in sys.modules,
        }


def long_list(student: str, rows: int, seconds: float) -> dict[str, Any]:
    """A list of many rows: the real student for some time, then plain pictures to the end."""
    from PIL import Image

    from tiue_core.batch.options import RunOptions
    from tiue_core.batch.session import BatchSession

    studio = BatchSession.open(student, device="cpu")
    studio.painter.pipe("warm", seed=0)
    with tempfile.TemporaryDirectory(dir=".") as place:
        path = Path(place) / "list.csv"
        with path.open("w") as file:
            file.write("prompt,seed\n")
            file.writelines(f"{prompt(i)},{i}\n" for i in range(rows))
        began = time.perf_counter()
        first, painted = 0.0, 0
        with studio.run(RunOptions(path), Path(place) / "real") as run:
            for result in run:
                first = first or time.perf_counter() - began
                painted += result.kind == "made"
                if time.perf_counter() - began > seconds:
                    run.cancel()
        plain = Image.new("RGB", (8, 8))
        studio.painter.paint = lambda jobs: [plain] * len(jobs)  # type: ignore[method-assign]
        os.fsync, fsync = (lambda handle: None), os.fsync
        memory: list[float] = []
        with studio.run(RunOptions(path), Path(place) / "plain") as run:
            for count, _ in enumerate(run):
                if count % (rows // 10) == 0:
                    memory.append(_resident())
        os.fsync = fsync
        memory.append(_resident())
        assert run.counts.made == rows
        began = time.perf_counter()
        with studio.run(RunOptions(path), Path(place) / "plain") as again:
            there = sum(result.kind == "there" for result in again)
        return {
            "rows": rows,
            "first_image_s": round(first, 2),
            "painted_meanwhile": painted,
            "resident_mb": [round(size) for size in memory],
            "second_run_s": round(time.perf_counter() - began, 1),
            "there": there,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--student", default="stickers")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=6, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, help="measure a long list instead")
    parser.add_argument("--seconds", type=float, default=20, help="of real painting, with --rows")
    parser.add_argument("--ray", action="store_true", help="a Ray worker paints, with --rows")
    given = parser.parse_args()
    if given.rows and given.ray:
        result = with_ray(given.student, given.rows, given.seconds)
    elif given.rows:
        result = long_list(given.student, given.rows, given.seconds)
    else:
        result = throughput(given.student, given.batch_size, given.batches, given.rounds)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
