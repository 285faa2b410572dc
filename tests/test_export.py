"""The student as one graph: the same picture as the pipeline's, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.export import noise as ours
from tiue_core.export.runtime import Graph
from tiue_core.export.write import export
from tiue_core.pipeline import draw_noise

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat on a blue background", "a gift and a boat on a pink background", ""]


@pytest.fixture(scope="module")
def stickers() -> Any:
    return TiuePipeline.from_pretrained("stickers")


@pytest.fixture(scope="module")
def graph(stickers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(stickers, tmp_path_factory.mktemp("graph") / "stickers.onnx")[0]


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 2, 2), (3, 5, 7)])
def test_noise_is_torchs(shape: tuple[int, int, int]) -> None:
    seeds = [0, 1, 7, 2**32 - 1, 2**32, 2**40 + 3]
    made = ours.draw_noise(seeds, shape)
    wanted = draw_noise(seeds, shape).numpy()
    assert np.abs(made - wanted).max() <= 2e-6


def test_graph_paints_what_the_pipeline_paints(stickers: Any, graph: Path) -> None:
    painter = Graph(graph, "cpu")
    seeds = [0, 5, 9]
    made = painter(PROMPTS, seeds, None, None)
    wanted = stickers(PROMPTS, seed=seeds).images
    for one, other in zip(made, wanted, strict=True):
        difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
        assert difference.max() <= 2
    latents = stickers(PROMPTS, seed=seeds, output_type="latent").images
    ids = stickers.tokenizer(
        PROMPTS, padding="max_length", max_length=stickers.tokenizer.model_max_length
    ).input_ids
    shape = (4, 16, 16)
    feed = {"input_ids": np.array(ids), "noise": draw_noise(seeds, shape).numpy()}
    found = painter.session.run(["latents"], feed)[0]
    assert np.abs(found - latents.numpy()).max() <= 1e-3


def test_generate_needs_no_torch(graph: Path, tmp_path: Path) -> None:
    """In a process of its own, with torch and diffusers made impossible to import."""
    script = (
        "import sys; sys.modules.update(torch=None, diffusers=None, transformers=None)\n"
        "from tiue_core.cli import main\n"
        f"main(['generate', 'a cat on a blue background', '--graph', {str(graph)!r}, "
        f"'--seed', '3', '--out', {str(tmp_path)!r}, '--json'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["images"][0]
    assert made["seed"] == 3
    with Image.open(made["path"]) as image:
        assert image.size == (128, 128)


def test_pt2_is_the_same_function(stickers: Any, tmp_path: Path) -> None:
    file = export(stickers, tmp_path / "stickers.pt2", to="pt2")[0]
    program = torch.export.load(file).module()
    ids = stickers.tokenizer(
        PROMPTS[:2], padding="max_length", max_length=stickers.tokenizer.model_max_length
    ).input_ids
    _, latents = program(torch.tensor(ids), draw_noise([1, 2], (4, 16, 16)))
    wanted = stickers(PROMPTS[:2], seed=[1, 2], output_type="latent").images
    assert (latents - wanted).abs().max() <= 1e-4


def test_bad_graphs_are_one_line(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(TiueError, match="does not exist"):
        Graph(tmp_path / "nowhere.onnx")
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(graph.read_bytes()[:5000])
    with pytest.raises(TiueError) as caught:
        Graph(torn)
    assert "\n" not in str(caught.value)
    with pytest.raises(TiueError, match=r"size|take"):
        Graph(graph)(["a cat"], [0], 256, 256)
