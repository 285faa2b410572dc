"""A process that dies by SIGKILL between two files of a checkpoint, as a power cut may hit it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIES = """
import os, signal, sys
from safetensors import torch as written
save, left = written.save_file, int(sys.argv.pop(1))
where, code = sys.argv.pop(1), sys.argv.pop(1)

def save_file(tensors, path, *rest, **more):
    global left
    save(tensors, path, *rest, **more)
    if where in str(path):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

written.save_file = save_file  # before anything of the library has taken its name
exec(code)
"""
DISTILL = "from tiue_core.cli import main; main()"
LORA = """
from tiue_core.train.lora.run import train_lora
from tiue_core.train.recipe import LoraRecipe
train_lora(LoraRecipe.model_validate_json(sys.argv[1]))
"""


def dying(code: str, *words: str, where: str, files: int) -> subprocess.CompletedProcess:
    """Run `code` with `words`; it dies when so many files whose path holds `where` are written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DIES, str(files), where, code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
