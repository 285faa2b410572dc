"""ComfyUI for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from place import BUILT_IN, HERE, Comfy, find
from server import Server

collect_ignore = ["inside", "page"]  # run in ComfyUI's Python, by the tests beside them
_missing: list[str] = []


@pytest.fixture(scope="session")
def comfy() -> Comfy:
    place = find()
    if place is None:
        why = "no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI"
    else:
        needed = "import torch, torchsde, aiohttp, diffusers, peft, pytest"
        probe = subprocess.run([place.python, "-c", needed], capture_output=True, text=True)
        lines = probe.stderr.strip().splitlines()
        why = f"{place.python} cannot run it ({lines[-1]})" if probe.returncode else ""
    if why:
        _skip(why)
    assert place is not None
    return place


@pytest.fixture(scope="session")
def skipped_loudly() -> Callable[[str], NoReturn]:
    """Skip a test, and say why at the end of the run."""
    return _skip


def _skip(why: str) -> NoReturn:
    if why not in _missing:
        _missing.append(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def server(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server whose models folder has a student, a LoRA and a ControlNet."""
    base = tmp_path_factory.mktemp("comfyui")
    running = Server(comfy, base)
    command = [comfy.python, str(HERE / "scratch.py"), str(base / "models"), str(BUILT_IN)]
    subprocess.run(command, env=comfy.environment, check=True, capture_output=True)
    with running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in _missing:
        line = f"COMFYUI TESTS DID NOT RUN: {why}"
        terminalreporter.write_line(line, red=True, bold=True)
