"""What the tests of both hosts share, ComfyUI's and Forge's: what files may do, and loud skips."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
NETWORK = {"requests", "urllib", "http", "socket", "subprocess", "pip"}


def imported_roots(path: Path) -> set[str]:
    """The packages that a file imports by name, of which none goes to the network; it runs no code
    that it made up."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN, f"{path}: {node.func.id}()"
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add((node.module or "").split(".")[0])
    assert not roots & NETWORK, f"{path}: {roots & NETWORK}"
    return roots


def loaded(file: Path, name: str, package: str | None = None) -> ModuleType:
    """A file as a module of another name, as hosts load theirs; found by nobody else."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if package is not None:
        module.__package__ = package
    sys.modules[name] = module  # dataclasses look it up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def installed(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``install.py``, run from `folder` by a Python that has no packages in sight."""
    folder.mkdir(parents=True)
    for name in ("install.py", "requirements.txt"):
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-S", str(folder / "install.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


class LoudSkips:
    """Tests of a host that cannot run here are skipped, with one line at the end that says why."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.reasons: list[str] = []

    def skip(self, why: str) -> NoReturn:
        if why not in self.reasons:
            self.reasons.append(why)
        pytest.skip(why)

    def usable(self, place: Any, lacking: str, needed: str) -> Any:
        """``place`` if there is one whose Python imports what is ``needed``."""
        if place is None:
            self.skip(lacking)
        probe = subprocess.run([place.python, "-c", needed], capture_output=True, text=True)
        if probe.returncode:
            self.skip(f"{place.python} cannot run it ({probe.stderr.strip().splitlines()[-1]})")
        return place

    def tell(self, reporter: pytest.TerminalReporter) -> None:
        for why in self.reasons:
            reporter.write_line(f"{self.host} TESTS DID NOT RUN: {why}", red=True, bold=True)
