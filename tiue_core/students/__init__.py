"""Students: what there is, where it is found, and how a file or folder of one is read."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """``find``, ``load``, ``REGISTRY``, ...: what this package was, when it was one module."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".resolve", __name__), name)
