"""SDXL's layout: its conditions against diffusers' own pipeline, and a student made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers_systems as hs
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tiue_core import TiuePipeline
from tiue_core.core.forward_process import guided
from tiue_core.core.packed import PackedUNet, pack, take_packed, unpack
from tiue_core.errors import TiueError
from tiue_core.pipelines.sdxl import TiueXLPipeline
from tiue_core.pipelines.text import embed, token_ids
from tiue_core.students.resolve import find
from tiue_core.train.loop import train
from tiue_core.train.plan import forecast
from tiue_core.train.recipe import DistillRecipe
from tiue_core.train.tasks.distill import DistillTask

PROMPTS = ["a cat", "a dog on a red background", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hs.sdxl(tmp_path / "xl")


@pytest.fixture
def pipe(folder: Path) -> Any:
    return TiuePipeline.from_pretrained(folder)


def test_one_name_loads_both_layouts(folder: Path, pipe: Any, tmp_path: Path) -> None:
    assert type(pipe) is TiueXLPipeline
    pipe.save_pretrained(tmp_path / "again")
    again = TiuePipeline.from_pretrained(tmp_path / "again")
    first, second = (p("a cat", seed=3, output_type="latent").images for p in (pipe, again))
    assert type(again) is TiueXLPipeline and torch.equal(first, second)


def test_prompts_are_as_sdxls_own_pipeline_encodes_them(folder: Path, pipe: Any) -> None:
    stock = StableDiffusionXLPipeline.from_pretrained(
        folder, use_safetensors=True, add_watermarker=False
    )
    packed = pipe.encode_prompt(PROMPTS)
    embeds, added = unpack(pipe.unet, packed, (8, 8), 8)
    for index, prompt in enumerate(PROMPTS):
        # An empty prompt is what SDXL gives when there is no negative one: zeros.
        given = stock.encode_prompt(prompt or "a cat", device="cpu", num_images_per_prompt=1)
        wanted, pooled = (given[0], given[2]) if prompt else (given[1], given[3])
        assert (embeds[index] - wanted[0]).abs().max() <= 1e-6
        assert (added["text_embeds"][index] - pooled[0]).abs().max() <= 1e-6
    assert embeds[0].abs().max() > 0.1 and (embeds[0] - embeds[1]).abs().max() > 0.1
    ids = stock._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 32)
    assert torch.equal(added["time_ids"], ids.expand(3, -1))


def test_the_trainer_encodes_as_the_pipeline(pipe: Any) -> None:
    tokens = token_ids(pipe, PROMPTS)
    with torch.no_grad():
        assert (embed(pipe, tokens) - pipe.encode_prompt(PROMPTS)).abs().max() <= 1e-6


@pytest.mark.parametrize("width", [1, 16, 17, 40])
def test_packing_loses_nothing(pipe: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds, pooled = torch.randn(2, 5, 16), torch.randn(2, width)
    config = {**pipe.unet.config, "cross_attention_dim": 16, "addition_time_embed_dim": 8}
    config["projection_class_embeddings_input_dim"] = 48 + width
    monkeypatch.setattr(pipe.unet, "_internal_dict", type(pipe.unet.config)(config))
    back, added = unpack(pipe.unet, pack(embeds, pooled), (4, 6), 8)
    assert torch.equal(back, embeds) and torch.equal(added["text_embeds"], pooled)
    assert added["time_ids"][1].tolist() == [32, 48, 0, 0, 32, 48]


def test_the_halves_and_the_whole_are_diffusers_unet(pipe: Any) -> None:
    """At one timestep encoder and decoder are the UNet, with the conditions given by hand."""
    z, unet = torch.randn(2, 4, 8, 8), pipe.unet
    packed = pipe.encode_prompt(PROMPTS[:2])
    rows = packed.shape[1] - pipe.tokenizer.model_max_length
    added = {
        "text_embeds": packed[:, -rows:].flatten(1)[:, :32],
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
    }
    with torch.no_grad():
        wanted = unet(z, 601, packed[:, :-rows], added_cond_kwargs=added).sample
        halves = PackedUNet(unet, 8)
        made = halves.decode(halves.encode(z, 601, packed), [601], packed)[0]
        take_packed(unet, 8)
        whole = unet(z, 601, packed).sample
        twice = guided(unet, z, torch.tensor(601), packed.repeat(2, 1, 1), 3.0)
    assert (made - wanted).abs().max() <= 1e-5
    assert (whole - wanted).abs().max() <= 1e-6 and (twice - wanted).abs().max() <= 1e-5
    added["text_embeds"] = added["text_embeds"] + 1
    with torch.no_grad():
        other = unet(z, 601, packed).sample
    assert torch.equal(other, whole)  # only what travels with the prompt counts


def test_an_unet_without_its_text_encoders_is_refused(pipe: Any) -> None:
    parts = {k: pipe.components[k] for k in ("vae", "text_encoder", "tokenizer", "scheduler")}
    with pytest.raises(ValueError, match="added conditions"):
        TiuePipeline(unet=pipe.unet, **parts)


def test_a_folder_that_lacks_the_second_encoder_is_one_line(folder: Path) -> None:
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(TiueError, match=r"text_encoder_2 has no \.safetensors") as error:
        find(folder)
    assert "\n" not in str(error.value)


def test_the_hosts_own_models_are_told_of_it(pipe: Any) -> None:
    """ComfyUI's hold it (``tests/comfyui/inside/check_xl.py``); other conditions are refused."""
    from tiue_core.students.ldm_config import unet_config

    told = unet_config(pipe.unet.config)
    assert (told["adm_in_channels"], told["num_classes"]) == (6 * 8 + 32, "sequential")
    for change in ({"addition_embed_type": "text"}, {"freq_shift": 1}, {"flip_sin_to_cos": False}):
        with pytest.raises(ValueError, match="ComfyUI's and Forge's own models cannot hold"):
            unet_config({**pipe.unet.config, **change})


EVERY_TERM = {"pairs": 4, "pair_steps": 2, "regression": 1.0, "adversarial": 0.1, "perceptual": 0.5}


@pytest.mark.parametrize("terms", [{}, EVERY_TERM], ids=["paper", "every term"])
def test_two_updates_make_a_student(folder: Path, tmp_path: Path, terms: dict[str, Any]) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fox\n")
    recipe = DistillRecipe(
        task="distill",
        out=tmp_path / "run",
        teacher=str(folder),
        prompts=str(tmp_path / "prompts.txt"),
        embeddings=tmp_path / "embeds",
        steps=2,
        batch_size=2,
        learning_rate=1e-3,
        lora_rank=2,
        lora_alpha=2,
        drop_prompt=0.5,
        log_every=1,
        **terms,
    )
    said: list[str] = []
    result = train(recipe, DistillTask, announce=said.append, estimate=forecast)
    assert "memory of each" in "\n".join(said)  # the plan knows this layout too
    student = TiuePipeline.from_pretrained(result)
    assert type(student) is TiueXLPipeline and student.config.force_zeros_for_empty_prompt
    before = TiuePipeline.from_pretrained(folder)
    image = student("a cat", seed=0, width=64, height=64).images[0]
    assert image.size == (64, 64)
    moved = [
        bool((a != b).any())
        for a, b in zip(student.unet.parameters(), before.unet.parameters(), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)
    name = "add_embedding.linear_1.weight"  # what hears the pooled text and the size
    learned = dict(student.unet.named_parameters())[name]
    assert (learned != dict(before.unet.named_parameters())[name]).any()
