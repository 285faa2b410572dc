"""The list of faults that tests hold (`scripts/red`) fits the code as it is."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[1]


def _script() -> ModuleType:
    import sys

    loader = importlib.machinery.SourceFileLoader("red", str(ROOT / "scripts" / "red"))
    spec = importlib.util.spec_from_loader("red", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["red"] = module  # dataclasses look there
    loader.exec_module(module)
    return module


RED = _script()
FAULTS = list(RED.faults())


def test_names_are_told_apart() -> None:
    names = [(fault.group, fault.name) for fault in FAULTS]
    assert len(names) > 40 and len(set(names)) == len(names)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.group}-{fault.name[:50]}")
def test_a_fault_can_be_put_back(fault: Any) -> None:
    assert fault.changes and (ROOT / fault.test.split()[0].split("::")[0]).is_file()
    for change in fault.changes:
        assert change.old != change.new
        text = change.applied(ROOT)  # raises where `old` is not there just once
        if change.file.endswith(".py"):
            ast.parse(text)
        if change.file.endswith(".json"):
            json.loads(text)


def test_the_tests_that_the_documents_name_are_there() -> None:
    """`test_file.py`, `test_file.py::test_name`, `test_name`; three dots stand for the rest."""
    written = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    functions = re.findall(r"^\s*(?:async )?def (test_\w+)", "\n".join(written.values()), re.M)
    named = 0
    for page in sorted(ROOT.glob("docs/**/*.md")):
        for name in re.findall(r"`(?:tests/[\w/]*)?(test_[\w./:]+)`", page.read_text("utf-8")):
            file, _, function = name.rpartition("::")
            if name.endswith(".py"):
                file, function = name, "test_"
            assert not file or Path(file).name in written, f"{page.name}: {name}"
            begins = function.removesuffix("...")
            whole = [
                f
                for f in functions
                if f == begins or (begins != function and begins in f[: len(begins)])
            ]
            assert name.endswith(".py") or whole, f"{page.name}: {name}"
            named += 1
    assert named > 30
