"""Fixtures of the checks that run inside ComfyUI's own Python."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import Student, called, differences, tiny, told

STUDENTS = {"stickers": os.environ["TIUE_STUDENT"], "random": ""}


@pytest.fixture(scope="session", params=STUDENTS)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """The built-in student, whose |z_0| is about 2; one of random weights, |z_0| about 16."""
    given = STUDENTS[request.param]
    return Student(Path(given or tiny.student(tmp_path_factory.mktemp("random") / "student")))


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def nodes() -> SimpleNamespace:
    """The pack's nodes by id, each as a function that returns its outputs."""
    from tiue_pack.nodes import calls, invert, lists, load, look, sample, train

    rooms = (load, sample, invert, calls, look, lists, train)
    every = [node for room in rooms for node in room.NODES]
    ids = [node.GET_SCHEMA().node_id.removeprefix("TiUE") for node in every]
    return SimpleNamespace(**{key: called(node) for key, node in zip(ids, every, strict=True)})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The greatest difference of every check, over its parameters but the student."""
    groups: dict[str, list[float]] = {}
    for check, difference in differences.items():
        name, _, parameters = check.partition("[")
        student = re.split(r"[-\]]", parameters)[0]
        key = f"{name}, {student}" if student in STUDENTS else name
        groups.setdefault(key, []).append(difference)
    terminalreporter.write_sep("-", "greatest difference of latents from TiuePipeline's")
    for key, found in groups.items():
        terminalreporter.write_line(f"{max(found):.1e}  {key.removeprefix('test_')} ({len(found)})")
    for line in told:
        terminalreporter.write_line(line)
