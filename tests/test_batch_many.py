"""The same list by other hands: batch sizes, Ray actors, launched processes. The same pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import helpers_students
import numpy as np
import psutil
import pytest
from PIL import Image

from tiue_core.batch.options import RunOptions as Plan
from tiue_core.batch.session import BatchSession

ROOT = Path(__file__).parents[1]
COLOURS = ("blue", "red", "green", "pink", "yellow", "white", "black", "orange")
LIST = "".join(
    f"a {thing} on a {colour} background\n"
    for thing in ("cat", "gift", "boat", "star", "fox")
    for colour in COLOURS
)
SIZES = LIST.replace("boat on a red background", "boat --width 96 --seed 3")


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.name] = np.asarray(image).astype(int)
    return found


def ids(folder: Path) -> list[str]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["id"] for line in lines)


def check_same(folder: Path, reference: Path) -> None:
    expected, found = pixels(reference), pixels(folder)
    assert found.keys() == expected.keys() and ids(folder) == ids(reference)
    worst = max(np.abs(found[name] - expected[name]).max() for name in expected)
    unequal = sum(not np.array_equal(found[name], expected[name]) for name in expected)
    print(f"{folder.name}: differs by {worst}/255 at most, {unequal} of {len(found)} not equal")
    assert worst <= 1


def make(studio: BatchSession, folder: Path, batch_size: int, **options: Any) -> Any:
    with studio.run(Plan(SIZES, batch_size=batch_size), folder, **options) as run:
        for _ in run:
            pass
    assert run.finished and run.counts.complete
    return run


@pytest.fixture(scope="module")
def studio() -> BatchSession:
    return BatchSession.open("stickers", device="cpu")


@pytest.fixture(scope="module")
def reference(studio: BatchSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "local-8"
    make(studio, folder, 8)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 32])
def test_batch_sizes(
    studio: BatchSession, reference: Path, tmp_path: Path, batch_size: int
) -> None:
    make(studio, tmp_path / f"local-{batch_size}", batch_size)
    check_same(tmp_path / f"local-{batch_size}", reference)


@pytest.mark.slow
@pytest.mark.parametrize(("actors", "batch_size"), [(1, 8), (3, 8), (3, 1), (3, 32)])
def test_ray(
    cluster: None,
    studio: BatchSession,
    reference: Path,
    tmp_path: Path,
    actors: int,
    batch_size: int,
) -> None:
    from tiue_core.batch.rays import RayPainter, WorkerOptions

    order = WorkerOptions("stickers", studio.settings.student_hash, device="cpu")
    folder = tmp_path / f"ray-{actors}-actors-batch-{batch_size}"
    painter = RayPainter(order, actors=actors)
    assert painter.settings == studio.settings
    make(BatchSession(painter, painter.settings), folder, batch_size, engine=painter.engine)
    painter.close()
    check_same(folder, reference)


@pytest.mark.slow
def test_a_worker_that_is_killed(
    cluster: None, studio: BatchSession, reference: Path, tmp_path: Path
) -> None:
    from tiue_core.batch.rays import RayPainter, WorkerOptions

    order = WorkerOptions("stickers", studio.settings.student_hash, device="cpu")
    folder, killed = tmp_path / "ray-killed", []
    painter = RayPainter(order, actors=2)
    with studio.run(Plan(SIZES, batch_size=4), folder, engine=painter.engine) as run:
        for count, _ in enumerate(run):
            if count == 3:
                killed = [worker.pid for worker in workers()]
                for worker in workers()[:1]:
                    worker.kill()
    painter.close()
    assert killed and run.finished and run.counts.complete
    check_same(folder, reference)


# A worker that dies of one prompt, as one does of a picture that is too large for its memory.
DEADLY = """
import os, sys
from pathlib import Path
from tiue_core.batch import rays
from tiue_core.batch.options import RunOptions
from tiue_core.batch.session import BatchSession
from tiue_core.students.resolve import find

class Deadly(rays.RayWorker):
    def paint(self, jobs):
        if any("DIE" in job.prompt for job in jobs):
            os._exit(1)
        return super().paint(jobs)

rays.RayWorker = Deadly
order = rays.WorkerOptions("tiny", find("tiny").content_hash(), "cpu", "float32")
painter = rays.RayPainter(order)
rows = "DIE\\na dog\\n" + "".join(f"a cat --seed {i}\\n" for i in range(6))
options = RunOptions(rows, batch_size=2)
session = BatchSession(painter, painter.settings)
with session.run(options, Path("out"), engine=painter.engine) as run:
    said = [result.message for result in run if result.kind == "failed"]
painter.close()
print(run.counts.made, *said, sep="|")
"""


@pytest.mark.slow
def test_a_batch_that_kills_its_worker_fails_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    helpers_students.make_student(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-c", DEADLY],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    made, *failed = done.stdout.strip().splitlines()[-1].split("|")
    assert made == "6" and len(failed) == 2  # those that shared its batch
    assert all("its worker died, each time" in line for line in failed)


# The command itself, in a process that knows torch by nothing else. Told at its end: jobs that were
# planned when the first picture had its line, and whether torch was loaded.
DRIVER = """
import atexit, json, sys
from tiue_core.batch import manifest, options
from tiue_core.cli import main

planned, seen = 0, []
jobs, append = options.Planner.jobs, manifest.Manifest.append

def counted(self, rows):
    global planned
    for job in jobs(self, rows):
        planned += 1
        yield job

def noticed(self, line):
    seen.append(planned)
    append(self, line)

options.Planner.jobs, manifest.Manifest.append = counted, noticed
atexit.register(lambda: print(json.dumps([seen[0], "torch" in sys.modules])))
main(sys.argv[1:])
"""


def test_with_ray_nothing_is_loaded_here_and_the_list_is_read_as_it_is_painted(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    helpers_students.make_student(tmp_path / "tiny")
    (tmp_path / "list.txt").write_text("".join(f"a cat --seed {i}\n" for i in range(80)))
    words = ["batch", "list.txt", "--student", "tiny", "--device", "cpu"]
    words += ["--batch-size", "1", "--no-sheet", "--no-index", "--out"]
    # Each in a process of its own: another number of threads rounds otherwise.
    done, _ = (
        subprocess.run(
            [sys.executable, *started, *words, *out],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        for started, out in (
            (["-c", DRIVER], ["many", "--engine", "ray"]),
            (["-m", "tiue_core"], ["alone"]),
        )
    )
    told, told_at_exit = done.stdout.splitlines()
    planned, torch_here = json.loads(told_at_exit)
    assert told.startswith("80 made")
    assert planned <= 48 and not torch_here
    alone = [*(tmp_path / "alone").glob("*.png")]
    assert len(alone) == 80
    for path in alone:  # what the making says is the same too
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()


def workers() -> list[psutil.Process]:
    """Ray's painting workers below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "RayWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
def test_processes_launched_together(tmp_path: Path) -> None:
    student = helpers_students.make_student(tmp_path / "tiny")
    (tmp_path / "list.txt").write_text("".join(f"a cat --seed {i}\n" for i in range(30)))
    words = ["-m", "tiue_core", "batch", str(tmp_path / "list.txt"), "--student", str(student)]
    words += ["--device", "cpu", "--batch-size", "4", "--out"]
    # --multi_gpu: how accelerate starts several processes (--cpu wants MPI); they paint on the CPU
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command, out in (([], "alone"), (launch, "together")):
        line = [sys.executable, *command, *words, str(tmp_path / out)]
        done = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.startswith("30 made")
    check_same(tmp_path / "together", tmp_path / "alone")
    assert (tmp_path / "together" / "index.html").exists()
