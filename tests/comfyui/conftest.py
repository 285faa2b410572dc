"""ComfyUI for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from place import BUILT_IN, HERE, Comfy, find

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
        _missing.append(why)
        pytest.skip(why)
    assert place is not None
    return place


@pytest.fixture(scope="session")
def student(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in student where it has weights, else one of its shape with random ones."""
    if (BUILT_IN / "model_index.json").is_file():
        return BUILT_IN
    folder = tmp_path_factory.mktemp("tiny") / "student"
    command = [comfy.python, str(HERE / "tiny.py"), str(folder)]
    subprocess.run(command, env=comfy.environment, check=True, capture_output=True)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        line = f"THE COMFYUI TESTS DID NOT RUN: {_missing[0]}"
        terminalreporter.write_line(line, red=True, bold=True)
