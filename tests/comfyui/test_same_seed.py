"""A seed is the same picture on the command line, out of a graph and in ComfyUI."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from place import ROOT
from server import Server, nodes_of, to_prompt

pytestmark = pytest.mark.slow  # exporting takes most of a minute
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ASKED = [("a cat on a blue background", 0), ("a gift and a boat on a pink background", 2**33 + 5)]


def tiue(*arguments: object) -> str:
    command = [sys.executable, "-m", "tiue_core", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "stickers.onnx"
    tiue("export", "stickers", "--out", file)
    return file


@pytest.mark.parametrize(("words", "seed"), ASKED)
def test_comfyui_paints_what_the_command_line_paints(
    server: Server, graph: Path, tmp_path: Path, words: str, seed: int
) -> None:
    """One-Pass Sampler and VAE Decode beside `tiue generate`, with PyTorch and with the graph."""
    info = server.get("/object_info")
    shipped = (ROOT / "workflows" / "text-to-image.json").read_text(encoding="utf-8")
    prompt = to_prompt(json.loads(shipped), info)
    nodes_of(prompt, "EmptyLatentImage")[0]["batch_size"] = 1
    nodes_of(prompt, "CLIPTextEncode")[0]["text"] = words
    nodes_of(prompt, "TiUEOnePassSampler")[0]["seed"] = seed
    run = server.run(prompt)
    assert run.status == "success", run.messages
    in_comfyui = pixels(io.BytesIO(server.view(run.images[0])))
    for name, options in {"generate --graph": ["--graph", graph], "generate": []}.items():
        made = json.loads(
            tiue("generate", words, "--seed", seed, *options, "--out", tmp_path, "--json")
        )
        apart = np.abs(pixels(made["images"][0]["path"]) - in_comfyui).max()
        print(f"ComfyUI {server.host.version}, seed {seed}: {apart}/255 from {name}")
        assert apart <= 2


def pixels(source: Any) -> np.ndarray:
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"), int)


def test_a_folder_that_comfyui_saved_paints_the_same_on_the_command_line(
    server: Server, tmp_path: Path
) -> None:
    """Save Student, as a diffusers folder, with a LoRA applied."""
    info = server.get("/object_info")
    shipped = (ROOT / "workflows" / "lora.json").read_text(encoding="utf-8")
    prompt = to_prompt(json.loads(shipped), info)
    words, seed = ASKED[0]
    nodes_of(prompt, "EmptyLatentImage")[0]["batch_size"] = 1
    nodes_of(prompt, "CLIPTextEncode")[0]["text"] = words
    nodes_of(prompt, "TiUEOnePassSampler")[0]["seed"] = seed
    lora = next(key for key, node in prompt.items() if node["class_type"] == "LoraLoader")
    (decode,) = nodes_of(prompt, "VAEDecode")
    prompt["save"] = {
        "class_type": "TiUESaveStudent",
        "inputs": {
            "model": [lora, 0],
            "clip": [lora, 1],
            "vae": decode["vae"],
            "name": "with-lora",
            "layout": "diffusers folder",
        },
    }
    run = server.run(prompt)
    assert run.status == "success", run.messages
    (picture,) = (image for image in run.images)
    in_comfyui = pixels(io.BytesIO(server.view(picture)))
    made = {}
    for student in (server.base / "output" / "tiue" / "with-lora", "stickers"):
        asked = ["generate", words, "--seed", seed, "--student", student, "--json"]
        made[student] = json.loads(tiue(*asked, "--out", tmp_path))["images"][0]["path"]
    saved, plain = (np.abs(pixels(path) - in_comfyui).max() for path in made.values())
    print(f"ComfyUI {server.host.version}: {saved}/255 from generate (without the LoRA {plain})")
    assert saved <= 2 < plain
