"""Where ComfyUI is: $COMFYUI_PATH, then ~/comfy/ComfyUI; its Python is found as in host_server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the scripts here, which pytest does not run
from host_server import ROOT, Checkout

HERE = Path(__file__).parent
BUILT_IN = ROOT / "tiue_core" / "stickers" / "student"


@dataclass(frozen=True)
class Comfy(Checkout):
    """A ComfyUI checkout and the Python that can run it."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "COMFYUI_PATH": str(self.path)}

    @property
    def version(self) -> str:
        file = self.path / "comfyui_version.py"
        text = file.read_text() if file.is_file() else "unknown"
        return text.rpartition("=")[2].strip().strip('"')


def find() -> Comfy | None:
    return Comfy.at("COMFYUI", "~/comfy/ComfyUI", ("main.py",), beside=True)
