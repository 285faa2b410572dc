"""Print the matrix of docs/comfyui/README.md: python tests/comfyui/matrix.py"""

from __future__ import annotations

import subprocess
import sys

from place import BUILT_IN, HERE, find

if __name__ == "__main__":
    comfy = find()
    if comfy is None:
        sys.exit("no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI")
    command = [comfy.python, str(HERE / "inside" / "matrix.py")]
    environment = {**comfy.environment, "TIUE_STUDENT": str(BUILT_IN)}
    sys.exit(subprocess.run(command, env=environment, cwd=HERE / "inside").returncode)
