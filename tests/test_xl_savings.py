"""SDXL's layout where work is saved: the same pictures, its conditions one image's own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import helpers_systems as hs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiue_core import TiuePipeline
from tiue_core.core.packed import PackedUNet
from tiue_core.shared.unet import SharedPackedUNet

PROMPTS = ["a cat", "a dog on a red background", ""]
SHAPES: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "SDXL's own": {"use_linear_projection": True, "transformer_layers_per_block": [2, 1]},
}


@pytest.fixture(scope="module", params=SHAPES)
def pipe(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = hs.sdxl(tmp_path_factory.mktemp("xl") / "student", **SHAPES[request.param])
    return TiuePipeline.from_pretrained(folder)


def painted(pipe: Any, **options: Any) -> Tensor:
    options = {"width": 32, "height": 48, "seed": 3, "output_type": "latent", **options}
    return pipe(PROMPTS, **options).images


def test_the_savings_predict_the_same(pipe: Any) -> None:
    unet = pipe.unet.double()
    noise = torch.randn(3, 4, 16, 24, dtype=torch.float64)
    packed = pipe.encode_prompt(PROMPTS).double()
    times = pipe.schedule().timesteps
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it must not be because of a fallback
        found = []
        for halves in (PackedUNet(unet, 2), SharedPackedUNet(unet, 2)):
            features = halves.encode(noise, times[0], packed)
            found.append(halves.decode(features, times, packed))
    unet.float()
    assert ((found[0] - found[1]).norm() / found[0].norm()) <= 1e-13
    # What is one image's own: pooled text and size reach the decoders of that image only.
    other = packed.clone()
    other[0, -1] += 1
    with torch.no_grad():
        halves = SharedPackedUNet(unet.double(), 2)
        moved = halves.decode(halves.encode(noise, times[0], other), times, other)
    unet.float()
    assert (moved[:, 0] - found[0][:, 0]).abs().max() > 1e-4
    assert (moved[:, 1:] - found[0][:, 1:]).abs().max() <= 1e-12


@pytest.mark.parametrize("options", [{}, {"decoders": "fast"}, {"guidance_scale": 2.0}])
def test_an_optimized_student_paints_the_same(
    pipe: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiue_core.optimize import optimize
    from tiue_core.shared import unet

    expected = painted(pipe, **options)
    monkeypatch.setattr(unet, "not_worth_it", lambda found: set())
    ticks = iter(range(100, 0, -1))
    monkeypatch.setattr(optimize, "clock", lambda *_: next(ticks))
    pipe.optimize("torch", width=32, height=48, batch_size=3)
    try:
        assert isinstance(pipe.split_unet, SharedPackedUNet)
        assert (painted(pipe, **options) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert pipe.unet.add_embedding.linear_1.weight.requires_grad
        weight = pipe.unet.add_embedding.linear_1.weight.data
        weight.mul_(1.5)
        changed = painted(pipe, **options)
        pipe.plain()
        assert (painted(pipe, **options) - changed).abs().max() <= 1e-5 * expected.abs().max()
        weight.div_(1.5)
    finally:
        pipe.plain()
    assert (changed - expected).abs().max() > 1e-4


def test_generate_and_batch_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiue_core import cli
    from tiue_core.io.images import read_metadata

    folder = hs.sdxl(tmp_path / "xl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIUE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "list.csv").write_text("prompt,seed\na cat,3\na dog,4\n")
    for command in (
        ["generate", "a cat", "--seed", "3", "--engine", "torch", "--out", "plain"],
        ["generate", "a cat", "--seed", "3", "--engine", "torch", "--out", "fast", "--optimize"],
        ["batch", "list.csv", "--out", "list", "--engine", "torch"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--student", str(folder), "--device", "cpu"])
        assert not ended.value.code

    pictures = [
        next(iter((tmp_path / name).glob("*cat*.png"))) for name in ("plain", "fast", "list")
    ]
    pixels = [torch.tensor(np.asarray(Image.open(file), np.int64)) for file in pictures]
    assert all((pixels[0] - other).abs().max() <= 1 for other in pixels[1:])
    assert len(read_metadata(pictures[2])["timesteps"]) == 4


@pytest.mark.slow
def test_a_graph_paints_what_the_pipeline_paints(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph, and the parts of any size behind the pipeline: sizes and padding go in rightly."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tiue_core.export.runtime import Graph
    from tiue_core.export.write import export
    from tiue_core.optimize.graph_unet import GraphPackedUNet

    prompts, seeds = [*PROMPTS, "a cat!"], [3, 4, 5, 6]
    graph = Graph(export(pipe, tmp_path / "xl.onnx")[0], "cpu")
    images, latents = graph.run(prompts, seeds)
    wanted = pipe(prompts, seed=seeds, output_type="latent").images.numpy()
    pixels = pipe(prompts, seed=seeds, output_type="pt").images.numpy()
    assert np.abs(latents - wanted).max() <= 1e-4 and np.abs(images - pixels).max() <= 1 / 255

    monkeypatch.setenv("TIUE_CACHE", str(tmp_path / "cache"))
    expected = [painted(pipe), painted(pipe, width=24, height=24), painted(pipe, steps=2)]
    pipe.use_graphs("onnxruntime")
    try:
        assert isinstance(pipe.split_unet, GraphPackedUNet)
        pipe._embeddings._known.clear()
        engine = [painted(pipe), painted(pipe, width=24, height=24), painted(pipe, steps=2)]
        weight = pipe.text_encoder_2.text_projection.weight.data
        weight.mul_(1.5)
        with pytest.warns(UserWarning, match="not those of the graph"):
            changed = painted(pipe)
        pipe.plain()
        assert (painted(pipe) - changed).abs().max() <= 1e-4
        weight.div_(1.5)
    finally:
        pipe.plain()
    for one, other in zip(engine, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    assert (changed - expected[0]).abs().max() > 1e-4


def test_the_page_paints_it_and_looks_inside(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from tiue_core import students
    from tiue_core.app.inside import look
    from tiue_core.app.paint import paint
    from tiue_core.app.state import ServerConfig
    from tiue_core.app.worker import Models

    folder = hs.sdxl(tmp_path / "xl")
    models = Models(ServerConfig.of([students.find(folder)], engine="torch"))
    pipe = TiuePipeline.from_pretrained(folder)
    for asked in ({}, {"width": 24, "height": 32}, {"guidance": 2.0, "negative": "a dog"}):
        order = models.config.order("a cat", 7, **asked)
        options = {"width": order.width, "height": order.height, "seed": 7}
        options |= {"guidance_scale": order.guidance, "negative_prompt": order.negative}
        (wanted,) = pipe("a cat", **options).images
        assert np.array_equal(np.asarray(paint(models, order).image), np.asarray(wanted))
    seen = look(models, models.config.order("a cat", 7), [1, 1, 1, 1], "a dog")
    assert len(seen.weights) == 4 and len(seen.sums) == 5
