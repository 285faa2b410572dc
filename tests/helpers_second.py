"""Second implementations, imported where torchvision is not.

piq, clean-fid and torch-fidelity name torchvision's models and datasets when imported. None
of what is compared here uses them, and torchvision's build must match torch's own: its wheel from
PyPI does not load beside a CPU build of torch. So while one of the three is imported, and not a
moment longer, everything below `torchvision` is an empty class. They lie in a folder of their own,
because torchmetrics imports torch-fidelity wherever it sees one.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

FOLDER = str(Path(sys.prefix) / "second")  #: where scripts/test puts them, without what they need


class _Anything(type):
    """A class of which every attribute is another one."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (nn.Module,), {})


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes it a package
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (nn.Module,), {})


class _Finder:
    """Knows torchvision and every module below it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def second(name: str) -> Any:
    """Import module ``name`` of one of the three, or skip the test where it is not installed."""
    finder, before = _Finder(), {key: sys.modules.pop(key) for key in _loaded()}
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    sys.path.append(FOLDER)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        return pytest.skip(f"{missing}: scripts/test installs it into {FOLDER}")
    finally:
        sys.path.remove(FOLDER)
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for key in _loaded():
            del sys.modules[key]
        sys.modules.update(before)


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "torchvision"]
