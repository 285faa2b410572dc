"""The pack's modules that need no ComfyUI, below a package of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def pack_without_host() -> None:
    """Make ``tiue_nodes.nodes.native`` importable; ``nodes/__init__.py`` itself wants ComfyUI."""
    for name, folder in (("tiue_nodes", ROOT), ("tiue_nodes.nodes", ROOT / "nodes")):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
