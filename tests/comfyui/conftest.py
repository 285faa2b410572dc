"""ComfyUI for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from helpers_hosts import LoudSkips
from place import BUILT_IN, HERE, Comfy, find
from server import Server

collect_ignore = ["inside", "page"]  # run in ComfyUI's Python, by the tests beside them
skips = LoudSkips("COMFYUI")


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "of the checks inside ComfyUI only those that pytest's own -k would choose by WORDS"
    parser.addoption("--inside", default="", metavar="WORDS", help=words)


@pytest.fixture(scope="session")
def comfy() -> Comfy:
    needed = "import torch, torchsde, aiohttp, diffusers, peft, pytest"
    return skips.usable(find(), "no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI", needed)


@pytest.fixture(scope="session")
def skipped_loudly() -> Callable[[str], NoReturn]:
    """Skip a test, and say why at the end of the run."""
    return skips.skip


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
    skips.tell(terminalreporter)
