"""Forge for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from forge_server import Forge, Server, find

collect_ignore = ["probe"]  # an extension, loaded by Forge
_missing: list[str] = []


@pytest.fixture(scope="session")
def forge() -> Forge:
    place = find()
    if place is None:
        why = "no Forge at $FORGE_PATH or ~/forge"
    else:
        needed = "import torch, gradio, diffusers, transformers, joblib"
        probe = subprocess.run([place.python, "-c", needed], capture_output=True, text=True)
        lines = probe.stderr.strip().splitlines()
        why = f"{place.python} cannot run it ({lines[-1]})" if probe.returncode else ""
    if why:
        _missing.append(why)
        pytest.skip(why)
    assert place is not None
    return place


@pytest.fixture(scope="session")
def server(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests, page and API, whose models folder is empty at first."""
    with Server(forge, tmp_path_factory.mktemp("forge")) as running:
        yield running


@pytest.fixture(scope="session")
def pipe() -> Any:
    from tiue_core import TiuePipeline

    return TiuePipeline.from_pretrained("stickers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in dict.fromkeys(_missing):
        line = f"WEBUI TESTS DID NOT RUN: {why}"
        terminalreporter.write_line(line, red=True, bold=True)
