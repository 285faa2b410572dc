"""Forge for the tests here; where it was not found, one loud line at the end of the run."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
import torch
from forge_server import ROOT, Forge, Server, find
from helpers_hosts import LoudSkips
from PIL import Image
from safetensors.torch import save_file

sys.path.append(str(ROOT / "tests" / "comfyui"))  # tiny, whose files are the same for both hosts
import tiny

UNET = "model.diffusion_model."
STRANGERS: dict[str, dict[str, tuple[int, ...]]] = {
    "SDXL": {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
    },
    "for inpainting": {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)},
    "SD3": {f"{UNET}joint_blocks.0.context_block.attn.qkv.bias": (4608,)},
    "Flux": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},  # as released: no prefix
}
collect_ignore = ["probe"]  # an extension, loaded by Forge
skips = LoudSkips("WEBUI")


@pytest.fixture(scope="session")
def forge() -> Forge:
    needed = "import torch, gradio, diffusers, transformers, joblib"
    return skips.usable(find(), "no Forge at $FORGE_PATH or ~/forge", needed)


@pytest.fixture(scope="session")
def original() -> Forge:
    """AUTOMATIC1111's WebUI, which is laid out and started alike."""
    place = Forge.at("A1111", "~/stable-diffusion-webui", ("launch.py", "modules/launch_utils.py"))
    lacking = "no original at $A1111_PATH or ~/stable-diffusion-webui"
    return skips.usable(place, lacking, "import torch, gradio, pytorch_lightning")


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
def strangers(server: Server) -> dict[str, str]:
    """Checkpoints that are no student's, by kind: the names of theirs, hardly any weights."""
    files = {}
    for kind, shapes in STRANGERS.items():
        file = server.models / "Stable-diffusion" / f"{kind.split()[-1]}.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
        files[kind] = file.name
    server.post("/sdapi/v1/refresh-checkpoints", {})
    return files


@pytest.fixture(scope="session")
def control(server: Server, picture: str) -> dict[str, Any]:
    """A unit of Forge's ControlNet, with a Control-LoRA of the miniature's shape."""
    models = server.get("/controlnet/model_list")["model_list"]
    (name,) = [model for model in models if model.startswith("edges")]
    return {"enabled": True, "module": "None", "model": name, "weight": 0.7, "image": picture}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips.tell(terminalreporter)
