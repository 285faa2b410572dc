"""AUTOMATIC1111's original, which has no Forge backend: one line, and the server lives on.

A checkout at $A1111_PATH or ~/stable-diffusion-webui, with a Python as host_server finds it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forge_server import Forge, Server

pytestmark = pytest.mark.slow
LINE = "TiUE needs a WebUI with Forge's backend: this one has none."


class Original(Server):
    """Page and API, without a checkpoint: none is loaded before the first picture."""

    def command(self) -> list[str]:
        return [
            *(self.host.python, "launch.py", "--skip-torch-cuda-test", "--use-cpu", "all"),
            *("--skip-prepare-environment", "--no-hashing", "--api", "--port", str(self.port)),
            *("--no-half", "--no-download-sd-model", "--do-not-download-clip", "--ui-debug-mode"),
            *("--data-dir", str(self.base)),
        ]


def test_one_line_and_the_server_lives_on(original: Forge, tmp_path: Path) -> None:
    with Original(original, tmp_path, probe=False) as server:
        assert server.log.count(LINE) == 1 and "tiue.py" not in server.log
        page = json.dumps(server.get("/config"))
        assert LINE in page and page.count("TiUE: one-pass painting") == 1
        names = [sampler["name"] for sampler in server.get("/sdapi/v1/samplers")]
        assert "TiUE One Pass" not in names and "Euler" in names
