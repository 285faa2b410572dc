"""Forge for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from forge_server import ROOT, Forge, Server, find
from PIL import Image

sys.path.append(str(ROOT / "tests" / "comfyui"))  # tiny, whose files are the same for both hosts
import tiny

collect_ignore = ["probe"]  # an extension, loaded by Forge
_missing: list[str] = []


@pytest.fixture(scope="session")
def forge() -> Forge:
    place = find()
    if place is None:
        why = "no Forge at $FORGE_PATH or ~/forge"
    else:
        needed = "import torch, gradio, diffusers, transformers, joblib"
        probe = subprocess.run([place.python, "-c", needed], capture_output=True, text=True)
        lines = probe.stderr.strip().splitlines()
        why = f"{place.python} cannot run it ({lines[-1]})" if probe.returncode else ""
    if why:
        _missing.append(why)
        pytest.skip(why)
    assert place is not None
    return place


@pytest.fixture(scope="session")
def pipe() -> Any:
    from tiue_core import TiuePipeline

    return TiuePipeline.from_pretrained("stickers")


@pytest.fixture(scope="session")
def server(forge: Forge, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests, page and API, without a checkpoint of its own."""
    server = Server(forge, tmp_path_factory.mktemp("forge"))
    tiny.control_lora(server.models / "ControlNet" / "edges.safetensors", pipe.unet)
    with server as running:
        yield running


@pytest.fixture(scope="session")
def lora(server: Server, pipe: Any) -> str:
    """The name of a LoRA among the server's models."""
    tiny.lora(server.models / "Lora" / "style.safetensors", pipe.unet, pipe.text_encoder)
    server.post("/sdapi/v1/refresh-loras", {})
    return "style"


@pytest.fixture(scope="session")
def picture() -> str:
    """In base64, as the API takes it."""
    file = BytesIO()
    Image.effect_noise((128, 128), 60).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def control(server: Server, picture: str) -> dict[str, Any]:
    """A unit of Forge's ControlNet, with a Control-LoRA of the miniature's shape."""
    models = server.get("/controlnet/model_list")["model_list"]
    (name,) = [model for model in models if model.startswith("edges")]
    return {"enabled": True, "module": "None", "model": name, "weight": 0.7, "image": picture}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in dict.fromkeys(_missing):
        line = f"WEBUI TESTS DID NOT RUN: {why}"
        terminalreporter.write_line(line, red=True, bold=True)
