"""A real Forge with the extension linked in: a scratch data folder and a port of its own.

A checkout: ``$FORGE_PATH``, then ~/forge; its Python is found as in host_server.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # for the benchmark, which pytest does not run
from host_server import ROOT, Checkout, HostServer, Refused

__all__ = ["NAME", "ROOT", "Forge", "Painting", "Refused", "Server", "find", "script", "tiue"]
HERE = Path(__file__).parent
NAME = "TiUE One Pass"


@dataclass(frozen=True)
class Forge(Checkout):
    """A checkout of Forge and the Python that can run it."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "HF_HUB_OFFLINE": "1"}


def find() -> Forge | None:
    return Forge.at("FORGE", "~/forge", ("launch.py", "backend"))


class Server(HostServer):
    """Forge's page and API; its log is ``base / server.log``."""

    ready = "/sdapi/v1/samplers"

    def __init__(
        self, forge: Forge, base: Path, *, extension: bool = True, probe: bool = True
    ) -> None:
        super().__init__(forge, base)
        self.models = base / "models"
        self.probe = base / "probe"
        self.environment["TIUE_PROBE"] = str(self.probe)
        for folder in ("extensions", "models/Lora", "models/ControlNet", "probe"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        for name, target, wanted in (
            ("tiue", ROOT, extension),
            ("tiue-probe", HERE / "probe", probe),
        ):
            if wanted:
                (base / "extensions" / name).symlink_to(target, target_is_directory=True)

    def started(self) -> bool:
        """Forge answers before its scripts have their arguments: a job would do without them. The
        original's own start fails if it is asked in the midst of it."""
        return "Startup time:" in self.log

    def command(self) -> list[str]:
        return [
            *(self.host.python, "launch.py", "--skip-torch-cuda-test", "--always-cpu"),
            *("--skip-prepare-environment", "--no-hashing", "--api", "--port", str(self.port)),
            "--clip-in-fp32",  # by default the text encoder has half precision
            # Gradio serves the page of a data folder elsewhere without the WebUI's own scripts.
            *("--gradio-allowed-path", str(self.host.path)),
            *("--server-name", "127.0.0.1", "--data-dir", str(self.base)),
        ]

    def paint(self, prompt: str = "a cat on a blue background", **settings: Any) -> Painting:
        """One call of txt2img (img2img where there are ``init_images``)."""
        kind = "img2img" if "init_images" in settings else "txt2img"
        for file in self.probe.iterdir():
            file.unlink()
        content = {
            "prompt": prompt,
            "seed": 3,
            "cfg_scale": 1.0,
            "width": 128,
            "height": 128,
            "sampler_name": NAME,
            **settings,
        }
        answer = self.post(f"/sdapi/v1/{kind}", content)
        images = [Image.open(BytesIO(base64.b64decode(image))) for image in answer["images"]]
        latents = [np.load(file) for file in sorted(self.probe.glob("latents-*.npy"))]
        parity = self.probe / "parity.json"
        return Painting(
            images=images,
            infotexts=json.loads(answer["info"])["infotexts"],
            latents=np.concatenate(latents) if latents else np.zeros(0),
            parity=json.loads(parity.read_text()) if parity.is_file() else [],
        )


@dataclass(frozen=True)
class Painting:
    """What a job gave."""

    images: list[Image.Image]
    infotexts: list[str]
    latents: np.ndarray  # (B, C, h, w), as the sampler returned them
    parity: list[float]  # relative L2 of the first decoder against Forge's own forward


def script(*arguments: Any) -> dict[str, Any]:
    """Arguments of an always-on script."""
    return {"args": list(arguments)}


def tiue(decoders: int = 0, speed: str = "plain") -> dict[str, Any]:
    """The accordion's values."""
    return {"TiUE: one-pass painting": script(decoders, speed)}
