"""Live mode's rules, in Node where there is one."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from place import HERE

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node")
def test_live_mode() -> None:
    command = [str(NODE), "--test", "live.test.mjs"]
    result = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
