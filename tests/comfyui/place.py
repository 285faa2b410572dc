"""Where ComfyUI is.

A checkout: ``$COMFYUI_PATH``, then ~/comfy/ComfyUI. Its Python: ``$COMFYUI_PYTHON``, then a
``venv`` or ``.venv`` inside or beside the checkout, then the one that runs the tests.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILT_IN = ROOT / "tiue_core" / "stickers" / "student"


@dataclass(frozen=True)
class Comfy:
    """A ComfyUI checkout and the Python that can run it."""

    path: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COMFYUI_PATH": str(self.path)}

    @property
    def version(self) -> str:
        file = self.path / "comfyui_version.py"
        text = file.read_text() if file.is_file() else "unknown"
        return text.rpartition("=")[2].strip().strip('"')


def find() -> Comfy | None:
    path = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser()
    if not (path / "main.py").is_file():
        return None
    beside = [folder / name for folder in (path, path.parent) for name in ("venv", ".venv")]
    pythons = [folder / tail for folder in beside for tail in ("bin/python", "Scripts/python.exe")]
    found = next((str(python) for python in pythons if python.is_file()), sys.executable)
    return Comfy(path, os.environ.get("COMFYUI_PYTHON") or found)
