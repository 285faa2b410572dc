"""A real Forge with the extension linked in: a scratch data folder and a port of its own.

A checkout: ``$FORGE_PATH``, then ~/forge. Its Python: ``$FORGE_PYTHON``, then a ``venv`` or
``.venv`` inside the checkout, then the one that runs the tests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NAME = "TiUE One Pass"
START_LIMIT, RUN_LIMIT = 600, 600  # s; generous, for machines that do other things too


@dataclass(frozen=True)
class Forge:
    """A checkout of Forge and the Python that can run it."""

    path: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}


def find() -> Forge | None:
    path = Path(os.environ.get("FORGE_PATH") or "~/forge").expanduser()
    if not (path / "launch.py").is_file() or not (path / "backend").is_dir():
        return None
    tails = ("bin/python", "Scripts/python.exe")
    pythons = [path / name / tail for name in ("venv", ".venv") for tail in tails]
    found = next((str(python) for python in pythons if python.is_file()), sys.executable)
    return Forge(path, os.environ.get("FORGE_PYTHON") or found)


class RefusedError(Exception):
    """The server answered with an error; the text is what it said."""


class Server:
    """Start it with ``with``; its log is ``base / server.log``."""

    def __init__(self, forge: Forge, base: Path, *, page: bool = True, extension: bool = True):
        self.forge, self.base, self.page = forge, base, page
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.models = base / "models"
        self.probe = base / "probe"
        for folder in ("extensions", "models/Lora", "models/ControlNet", "probe"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        if extension:
            for name, target in (("tiue", ROOT), ("tiue-probe", HERE / "probe")):
                (base / "extensions" / name).symlink_to(target, target_is_directory=True)

    def __enter__(self) -> Server:
        command = [self.forge.python, "launch.py", "--skip-torch-cuda-test", "--always-cpu"]
        command += ["--skip-prepare-environment", "--no-hashing", "--api", "--port", str(self.port)]
        command += ["--clip-in-fp32"]  # by default the text encoder has half precision
        # Gradio serves the page of a data folder elsewhere without the scripts of the WebUI itself.
        command += ["--gradio-allowed-path", str(self.forge.path)]
        command += ["--server-name", "127.0.0.1", "--data-dir", str(self.base)]
        command += [] if self.page else ["--nowebui"]
        self.file = self.base / "server.log"
        began = time.monotonic()
        with self.file.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.forge.path,
                env={**self.forge.environment, "TIUE_PROBE": str(self.probe)},
                stdout=log,
                stderr=log,
            )
        while time.monotonic() - began < START_LIMIT and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/sdapi/v1/samplers")
                self.seconds = time.monotonic() - began
                return self
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"Forge did not start:\n{self.log[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.file.read_text(errors="replace")

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    # --- HTTP ------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=RUN_LIMIT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RefusedError(error.read().decode()) from error

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
