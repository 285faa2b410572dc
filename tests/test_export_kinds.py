"""Every kind of graph beside the pipeline. Minutes; the figures are shown with `pytest -s`."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_students import kohya_lora_tensors, make_student, write_lora

from tiue_core import TiuePipeline
from tiue_core.cli.export import make
from tiue_core.core.noise import draw_noise
from tiue_core.errors import TiueError
from tiue_core.export.runtime import Graph, open_session
from tiue_core.export.write import export
from tiue_core.students.lora import Lora, load_loras

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
THINGS = ("cat", "gift", "boat", "star", "fox", "apple", "house", "moon")
COLOURS = ("blue", "red", "green", "pink", "yellow", "white", "black", "orange")
SIXTY_FOUR = [f"a {thing} on a {colour} background" for thing, colour in product(THINGS, COLOURS)]
SOME, SEEDS = ["a cat", "dog, and 3 more.", ""], [4, 5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    """Two levels, random weights."""
    return TiuePipeline.from_pretrained(folder)


def apart(pipe: Any, graph: Path, **options: Any) -> tuple[float, float]:
    """The largest difference of latents, and of pictures in 255ths."""
    images, latents = Graph(graph, "cpu").run(
        SOME, SEEDS, options.get("width"), options.get("height")
    )
    wanted = pipe(SOME, seed=SEEDS, output_type="latent", **options).images.numpy()
    if options.get("draft"):
        wanted = pipe(SOME, seed=SEEDS, output_type="latent").images.numpy()
    pictures = pipe(SOME, seed=SEEDS, output_type="pt", **options).images.numpy()
    return np.abs(latents - wanted).max(), 255 * np.abs(images - pictures).max()


def test_64_prompts_of_the_miniature(tmp_path: Path) -> None:
    stickers = TiuePipeline.from_pretrained("stickers")
    painter = Graph(export(stickers, tmp_path / "stickers.onnx")[0], "cpu")
    latent, pixel, worst = 0.0, 0.0, 0
    for first in range(0, 64, 8):
        prompts, seeds = SIXTY_FOUR[first : first + 8], list(range(first, first + 8))
        images, latents = painter.run(prompts, seeds)
        wanted = stickers(prompts, seed=seeds, output_type="latent").images.numpy()
        pictures = stickers(prompts, seed=seeds, output_type="pt").images.numpy()
        latent = max(latent, float(np.abs(latents - wanted).max()))
        pixel = max(pixel, 255 * float(np.abs(images - pictures).max()))
        saved = stickers(prompts, seed=seeds).images
        for one, other in zip(painter(prompts, seeds), saved, strict=True):
            worst = max(worst, int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max()))
    print(f"64 prompts: latents {latent:.1e}, picture {pixel:.3f}/255, saved {worst}/255 apart")
    assert latent <= 1e-3 and pixel <= 2 and worst <= 2


def test_float16_of_the_miniature(tmp_path: Path) -> None:
    (file,) = make("stickers", tmp_path / "half.onnx", dtype="float16")
    painter = Graph(file, "cpu")
    assert painter.about["dtype"] == "float16"
    images, latents = painter.run(SIXTY_FOUR[:4], [0, 1, 2, 3])
    exact = TiuePipeline.from_pretrained("stickers")
    wanted = exact(SIXTY_FOUR[:4], seed=[0, 1, 2, 3], output_type="latent").images.numpy()
    pictures = exact(SIXTY_FOUR[:4], seed=[0, 1, 2, 3], output_type="pt").images.numpy()
    latent = np.abs(latents - wanted).max()
    noise = 255 * np.sqrt(np.square(images - pictures).mean())
    print(f"float16: latents {latent:.1e} apart, picture {noise:.2f}/255 rms")
    assert latent <= 0.1 and noise <= 2


@pytest.mark.parametrize(
    "options",
    [{"decoders": "fast"}, {"steps": 1}, {"steps": 3, "width": 24}],
    ids=["fast", "K=1", "K=3, wide"],
)
def test_options_are_the_pipelines(pipe: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    latent, pixel = apart(pipe, export(pipe, tmp_path / "a.onnx", **options)[0], **options)
    assert latent <= 1e-4 and pixel <= 0.1


def test_any_size(pipe: Any, tmp_path: Path) -> None:
    (graph,) = export(pipe, tmp_path / "any.onnx", dynamic_size=True)
    for width, height in ((16, 16), (8, 8), (32, 8), (12, 64)):
        latent, pixel = apart(pipe, graph, width=width, height=height)
        assert latent <= 1e-4 and pixel <= 0.1
    with pytest.raises(TiueError, match="takes sides from 8 to 64 in steps of 4 pixels"):
        Graph(graph, "cpu")(SOME, SEEDS, 68, 16)
    with pytest.raises(ValueError, match="starts from sides that are multiples of 4, from 8"):
        export(pipe, tmp_path / "no.onnx", dynamic_size=True, width=18)
    assert not (tmp_path / "no.onnx").exists()


def test_any_batch(pipe: Any, tmp_path: Path) -> None:
    """A picture does not depend on its neighbours, also past the batches it was traced for."""
    painter = Graph(export(pipe, tmp_path / "a.onnx")[0], "cpu")
    prompts, seeds = [f"a {letter}" for letter in "abcdefghijklmnopqrst"], list(range(20))
    _, together = painter.run(prompts, seeds)
    alone = np.concatenate([painter.run([p], [s])[1] for p, s in zip(prompts, seeds, strict=True)])
    assert np.abs(together - alone).max() <= 1e-4


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_parts_make_a_whole(pipe: Any, tmp_path: Path, dynamic_size: bool) -> None:
    files = export(pipe, tmp_path / "tiny.onnx", parts=True, dynamic_size=dynamic_size)
    names = ["text_encoder", "encoder", "decoder", "vae"]
    assert [file.name for file in files] == [f"tiny.{name}.onnx" for name in names]
    sides = (8, 12) if dynamic_size else (8, 8)
    values = {
        "input_ids": pipe.tokenizer(
            SOME, padding="max_length", max_length=16, truncation=True, return_tensors="np"
        ).input_ids,
        "noise": draw_noise(SEEDS, (4, *sides)).numpy(),
    }
    for file in files:
        session, _ = open_session(file, "cpu")
        feed = {each.name: values[each.name] for each in session.get_inputs()}
        made = session.run(None, feed)
        values |= dict(zip([each.name for each in session.get_outputs()], made, strict=True))
    size = {"width": 2 * sides[1], "height": 2 * sides[0]}
    wanted = pipe(SOME, seed=SEEDS, output_type="latent", **size).images.numpy()
    pictures = pipe(SOME, seed=SEEDS, output_type="pt", **size).images.numpy()
    assert np.abs(values["latents"] - wanted).max() <= 1e-4
    assert np.abs(values["image"] - pictures).max() <= 1e-4
    with pytest.raises(TiueError, match="is a part of a student: give the graph of the whole"):
        Graph(files[-1], "cpu")


def test_lora_is_fused_in(folder: Path, pipe: Any, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "style.safetensors", kohya_lora_tensors(scale=4.0))
    (graph,) = make(str(folder), tmp_path / "styled.onnx", lora=[f"{lora}:0.8"])
    styled = TiuePipeline.from_pretrained(folder)
    load_loras(styled, [Lora.parse(f"{lora}:0.8")])
    latent, _ = apart(styled, graph)
    without, _ = apart(pipe, graph)
    print(f"LoRA: latents {latent:.1e} apart, {without:.1e} from those without it")
    assert latent <= 1e-3 and without >= 100 * latent
    (recorded,) = Graph(graph, "cpu").about["loras"]
    assert recorded["name"] == "style" and recorded["strength"] == 0.8


def test_taesd_in_the_autoencoders_place(pipe: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(64, 64),
        decoder_block_out_channels=(64, 64),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "taesd")
    pipe.load_draft(tmp_path / "taesd")
    latent, pixel = apart(pipe, export(pipe, tmp_path / "draft.onnx", draft=True)[0], draft=True)
    assert latent <= 1e-4 and pixel <= 0.1


def test_pt2_is_the_same_function(pipe: Any, tmp_path: Path) -> None:
    (file,) = export(pipe, tmp_path / "tiny.pt2", to="pt2", record={"student": "tiny"})
    stored = {"tiue": "", "tokenizer.json": ""}
    program = torch.export.load(file, extra_files=stored).module()
    ids = pipe.tokenizer(
        SOME, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    ).input_ids
    image, latents = program(ids, draw_noise(SEEDS, (4, 8, 8)))
    wanted = pipe(SOME, seed=SEEDS, output_type="latent").images
    pictures = pipe(SOME, seed=SEEDS, output_type="pt").images
    assert (latents - wanted).abs().max() <= 1e-4 and (image - pictures).abs().max() <= 1e-4
    about = json.loads(stored["tiue"])
    assert about["student"] == "tiny" and about["timesteps"] == [751, 501, 251, 1]
    assert json.loads(stored["tokenizer.json"])["model"]["vocab"]
