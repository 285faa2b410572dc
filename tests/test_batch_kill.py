"""A run that is killed at random moments leaves what a run that nothing interrupted leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers_students as helpers
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tiue_core", "batch", *words, "--no-sheet", "--no-index"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def finish(words: list[str]) -> None:
    process = start(words)
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()


def lines(folder: Path) -> int:
    manifest = folder / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def kill_at(words: list[str], folder: Path, count: int, wait: float) -> None:
    """SIGKILL once the manifest has `count` lines, or the run is over, and `wait` seconds more."""
    process = start(words)
    while process.poll() is None and lines(folder) < count:
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check_same(whole: Path, killed: Path, rows: int) -> None:
    expected = {path.name: path for path in whole.glob("*.png")}
    found = {path.name: path for path in killed.glob("*.png")}
    assert len(expected) == rows and found.keys() == expected.keys()
    for name, path in found.items():
        with Image.open(path) as image:
            image.load()
        assert path.read_bytes() == expected[name].read_bytes(), name
    records = [json.loads(line) for line in (killed / "manifest.jsonl").read_text().splitlines()]
    ids = [record["id"] for record in records]
    assert len(ids) == len(set(ids)) == rows
    assert {record["file"] for record in records} == set(found)


def trial(folder: Path, student: str, rows: int, kills: int, wait: float, *options: str) -> None:
    prompts = folder / "list.csv"
    things = ("cat", "gift", "boat", "star", "fox", "apple", "house", "moon")
    text = [f"a {things[i % 8]} on a {'blue' if i % 3 else 'red'} background" for i in range(rows)]
    prompts.write_text("prompt,seed\n" + "".join(f"{line},{i}\n" for i, line in enumerate(text)))
    words = [str(prompts), "--student", student, "--device", "cpu", *options, "--out"]
    finish([*words, str(folder / "whole")])
    moments = random.Random(rows)
    for count in sorted(moments.sample(range(rows), kills)):
        pause = moments.uniform(0, wait)
        kill_at([*words, str(folder / "killed")], folder / "killed", count, pause)
        print(f"killed at {count} and {pause:.2f} s: {lines(folder / 'killed')} lines", flush=True)
    finish([*words, str(folder / "killed")])
    check_same(folder / "whole", folder / "killed", rows)
    assert not [path for path in (folder / "killed").iterdir() if path.suffix == ".part"]


def test_killed_and_restarted(tmp_path: Path) -> None:
    student = helpers.make_student(tmp_path / "tiny")
    trial(tmp_path, str(student), 200, 2, 0.1, "--batch-size", "4")


@pytest.mark.slow
def test_120_rows_cut_twenty_times(tmp_path: Path) -> None:
    trial(tmp_path, "stickers", 120, 20, 1.0)


@pytest.mark.slow
def test_a_thousand_rows_killed_twenty_times(tmp_path: Path) -> None:
    trial(tmp_path, "stickers", 1000, 20, 1.5)
