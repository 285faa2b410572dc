"""Checks that run inside ComfyUI's own Python: the numbers, against diffusers and TiuePipeline."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from place import HERE, Comfy

CHECKS = sorted((HERE / "inside").glob("check_*.py"))


@pytest.mark.parametrize("check", CHECKS, ids=[path.stem for path in CHECKS])
def test_inside_comfyui(comfy: Comfy, student: Path, check: Path) -> None:
    command = [comfy.python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["--override-ini", "addopts=", "--confcutdir", ".", str(check)]
    result = subprocess.run(
        command,
        env={**comfy.environment, "TIUE_STUDENT": str(student)},
        cwd=HERE / "inside",
        capture_output=True,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
