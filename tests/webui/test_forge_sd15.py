"""A student of Stable Diffusion 1.5's topology with random weights, by Forge's stock loader.

Its text encoder, autoencoder, tokenizer and scheduler are Stable Diffusion's in full; its UNet has
the same four levels of two layers and eight heads, all but the first half as wide: 455 million
weights for 1066. FreeU and token merging act on such widths and levels alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from forge_server import Forge, Painting, Server
from parity import CASES, CLOSE, HANGING, PROMPT, compare, distance

from tiue_core import TiuePipeline
from tiue_core.students.checkpoint import STABLE_DIFFUSION, Parts, write

pytestmark = pytest.mark.slow
NAME = "random.safetensors"
WIDTHS = [320, 320, 640, 640]  # Stable Diffusion's: 320, 640, 1280, 1280


@pytest.fixture(scope="module")
def student(forge: Forge, server: Server) -> Iterator[TiuePipeline]:
    """The pipeline; its checkpoint is among the server's, in half precision as people have it."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    stock = forge.path / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"

    def config(part: str) -> dict[str, Any]:
        return json.loads((stock / part / "config.json").read_text())

    torch.manual_seed(0)
    models = {
        "vae": AutoencoderKL.from_config(config("vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
        "unet": UNet2DConditionModel.from_config({**config("unet"), "block_out_channels": WIDTHS}),
    }
    pipe = TiuePipeline(
        **{part: model.half().float().eval() for part, model in models.items()},
        tokenizer=CLIPTokenizer.from_pretrained(stock / "tokenizer"),
        scheduler=DDIMScheduler(**STABLE_DIFFUSION),
    )
    file = server.models / "Stable-diffusion" / NAME
    write(Parts.of_pipeline(pipe, "random"), file, torch.float16)
    server.post("/sdapi/v1/refresh-checkpoints", {})
    yield pipe
    file.unlink()  # for the tests' folders are kept a while
    server.post("/sdapi/v1/refresh-checkpoints", {})
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": "tiue/stickers.safetensors"})


def paint(server: Server, prompt: str = PROMPT, **settings: Any) -> Painting:
    override = {"sd_model_checkpoint": NAME, **settings.pop("override_settings", {})}
    return server.paint(prompt, override_settings=override, **settings)


@pytest.mark.parametrize("case", CASES)
def test_the_pipelines_latents_and_pictures(
    server: Server, student: TiuePipeline, case: str
) -> None:
    theirs, ours = CASES[case]
    compare(case, paint(server, **theirs), student, **{"width": 128, "height": 128, **ours})


def test_lora(server: Server, student: TiuePipeline) -> None:
    file = server.models / "Lora" / "wide.safetensors"
    tiny.lora(file, student.unet, student.text_encoder)
    server.post("/sdapi/v1/refresh-loras", {})
    painting = paint(server, f"{PROMPT} <lora:wide:0.8>")
    with tiny.merged(student, file, 0.8):
        compare("lora", painting, student, width=128, height=128)
    assert distance(painting, paint(server).latents) > 1000 * CLOSE


@pytest.mark.parametrize("name", HANGING)
def test_the_first_decoder_is_forges_own_forward(
    server: Server, student: TiuePipeline, name: str
) -> None:
    how: dict[str, Any] = {"cfg_scale": 3.0, "batch_size": 2, "negative_prompt": "a dog"}
    painting = paint(server, **HANGING[name], **how)
    server.post("/sdapi/v1/options", {"token_merging_ratio": 0.0})  # which Forge does not restore
    moved = distance(painting, paint(server, **how).latents)
    print(f"{name}: {max(painting.parity):.1e}, latents moved by {moved:.1e}")
    assert painting.parity and max(painting.parity) <= CLOSE
    assert (moved > 1000 * CLOSE) == (name != "nothing")
