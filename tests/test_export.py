"""The student as one graph: the same picture as the pipeline's, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from helpers_students import make_student
from PIL import Image

from tiue_core import TiuePipeline
from tiue_core.core.noise import draw_noise
from tiue_core.export import noise as ours
from tiue_core.export.runtime import Graph
from tiue_core.export.write import export
from tiue_core.shared.exact import doubled

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat", "", "dog, and 3 more."]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two levels, random weights."""
    return TiuePipeline.from_pretrained(make_student(tmp_path_factory.mktemp("student")))


@pytest.fixture(scope="module")
def graph(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    (folder / "tiny.onnx.data").write_bytes(b"of a larger one that was here before")
    (file,) = export(pipe, folder / "tiny.onnx", record={"student": "tiny"})
    assert [each.name for each in folder.iterdir()] == ["tiny.onnx"]
    return file


def test_no_file_says_where_it_was_made(pipe: Any, graph: Path, tmp_path: Path) -> None:
    """The tracer notes the lines of code that a node is from, with their folders."""
    (program,) = export(pipe, tmp_path / "tiny.pt2", to="pt2")
    with zipfile.ZipFile(program) as parts:
        inside = {name: parts.read(name) for name in parts.namelist()}
    shipped = [*(ROOT / "tiue_core" / "stickers" / "graph").glob("*.onnx")]
    assert len(shipped) == 4
    inside |= {file.name: file.read_bytes() for file in (graph, *shipped)}
    for name, content in inside.items():
        assert b"site-packages" not in content and b"tiue_core/" not in content, name


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 2, 2), (3, 5, 7)])
def test_noise_is_torchs(shape: tuple[int, int, int]) -> None:
    seeds = [0, 1, 7, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1]
    made = ours.draw_noise(seeds, shape)
    wanted = draw_noise(seeds, shape).numpy()
    assert np.abs(made - wanted).max() <= 2e-6


@pytest.mark.parametrize("batch", [1, 3])
def test_graph_paints_what_the_pipeline_paints(pipe: Any, graph: Path, batch: int) -> None:
    prompts, seeds = PROMPTS[:batch], [2**33 + 5, 0, 7][:batch]
    images, latents = Graph(graph, "cpu").run(prompts, seeds)
    wanted = pipe(prompts, seed=seeds, output_type="latent").images.numpy()
    pictures = pipe(prompts, seed=seeds, output_type="pt").images.numpy()
    assert np.abs(latents - wanted).max() <= 1e-4
    assert np.abs(images - pictures).max() <= 1e-4
    assert wanted.std() > 1 and pictures.std() > 0.02  # or agreeing would say little


def test_norms_of_single_channels_are_not_reshaped(pipe: Any, tmp_path: Path) -> None:
    """An engine's instance norm takes features as they lie, a group norm's groups it must make."""
    import onnx
    from torch import nn

    norms = {n: m for n, m in pipe.vae.decoder.named_modules() if isinstance(m, nn.GroupNorm)}
    single = [n for n, m in norms.items() if m.num_groups == m.num_channels]
    of_pictures = [n for n in single if "attention" not in n]  # those are of rows of pixels
    assert of_pictures
    export(pipe, tmp_path / "tiny.onnx", parts=True)
    nodes = onnx.load(tmp_path / "tiny.vae.onnx").graph.node
    makers = {output: node.op_type for node in nodes for output in node.output}
    given = [makers[n.input[0]] for n in nodes if n.op_type == "InstanceNormalization"]
    assert len(given) == len(norms)
    assert sum(maker != "Reshape" for maker in given) == len(of_pictures)
    assert all(m is pipe.vae.decoder.get_submodule(n) for n, m in norms.items())  # its own stay


def test_upsamplers_are_transposed_convolutions(pipe: Any, tmp_path: Path) -> None:
    """Four ninths of the multiplications; the student's own stay as they are."""
    import onnx

    export(pipe, tmp_path / "tiny.onnx", parts=True)
    for part, levels in (("vae", pipe.vae.decoder.up_blocks), ("decoder", pipe.unet.up_blocks)):
        model = onnx.load(tmp_path / f"tiny.{part}.onnx").graph
        kinds = [node.op_type for node in model.node]
        upsamplers = [level.upsamplers[0] for level in levels if level.upsamplers]
        assert kinds.count("ConvTranspose") == len(upsamplers) > 0 == kinds.count("Resize")
        kernels = [each for each in model.initializer if tuple(each.dims)[2:] == (4, 4)]
        assert len(kernels) == len(upsamplers)  # stored, not derived in the graph
        assert all(isinstance(each, Upsample2D) for each in upsamplers)  # its own stay


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_doubling_is_a_transposed_convolution(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=random).double()
    h = torch.randn(2, 4, *size, generator=random).double()
    wanted = F.conv2d(F.interpolate(h, scale_factor=2.0), weight, padding=1)
    made = F.conv_transpose2d(h, doubled(weight), stride=2, padding=1)
    assert torch.allclose(made, wanted, rtol=1e-12, atol=1e-12)


def test_generate_needs_no_torch(graph: Path, tmp_path: Path) -> None:
    """In a process of its own, with torch and diffusers made impossible to import."""
    script = (
        "import sys; sys.modules.update(torch=None, diffusers=None, transformers=None)\n"
        "from tiue_core.cli import main\n"
        f"main(['generate', 'a cat', '--graph', {str(graph)!r}, "
        f"'--seed', '3', '--out', {str(tmp_path)!r}, '--json'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["images"][0]
    assert made["seed"] == 3
    with Image.open(made["path"]) as image:
        assert image.size == (16, 16)
        record = json.loads(image.text["tiue"])  # type: ignore[attr-defined]
    assert record["student"] == "tiny" and record["timesteps"] == [751, 501, 251, 1]


def test_words_that_do_not_fit_are_named(graph: Path) -> None:
    with pytest.warns(UserWarning, match=r"16 tokens, these words are dropped: and ten$"):
        Graph(graph, "cpu").tokens(["a prompt too long and ten"])
