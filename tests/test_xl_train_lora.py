"""A LoRA trained for a student of SDXL's layout: its conditions are the picture's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers_systems as hs
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.students import lora_names
from tiue_core.students.lora import Lora, load_loras
from tiue_core.train.lora import parts as parts_of
from tiue_core.train.lora import run
from tiue_core.train.recipe import LoraRecipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hs.sdxl(tmp_path_factory.mktemp("xl") / "student")


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Any:
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("a", (16, 16)), ("b", (24, 12)), ("c", (16, 16))):
        Image.effect_noise(size, 90).convert("RGB").save(images / f"{name}.png")
        (images / f"{name}.txt").write_text(f"zorb {name}")
    return LoraRecipe(
        student=str(folder),
        teacher=str(folder),
        images=images,
        out=tmp_path / "out.safetensors",
        trigger="zorb",
        steps=2,
        student_steps=2,
        batch_size=1,
        priors=2,
        pairs=2,
        pair_steps=2,
        rank=2,
        alpha=2,
        learning_rate=1e-2,
        targets=["to_k", "conv1"],
        checkpoint_every=1,
        sample_every=100,
    )


def test_the_teacher_is_told_what_diffusers_tells_it(
    recipe: Any, folder: Path, tmp_path: Path
) -> None:
    pipe, _ = run.load_student(recipe, False)
    teacher = run.load_teacher(recipe, pipe, False)
    pictures = run.pictures_of(recipe, pipe)
    assert run.estimate(recipe, pipe, [one.bucket for one in pictures.items]).update > 0
    parts = parts_of.make_parts(recipe, pipe, teacher, pictures, tmp_path)
    stock = StableDiffusionXLPipeline.from_pretrained(
        folder, use_safetensors=True, add_watermarker=False
    )
    plain = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    assert len(parts.groups) == 2
    for group in parts.groups:
        latents = group.latents
        size = tuple(2 * side for side in latents.shape[-2:])
        index = next(i for i, e in enumerate(parts.embeds) if torch.equal(e, group.embeds[0]))
        embeds, _, pooled, _ = stock.encode_prompt(
            parts.captions[index], device="cpu", do_classifier_free_guidance=False
        )
        ids = stock._get_add_time_ids(size, (0, 0), size, torch.float32, 32)
        with torch.no_grad():
            added = {"text_embeds": pooled, "time_ids": ids}
            wanted = plain(latents[:1], 601, embeds, added_cond_kwargs=added).sample
            told = teacher(latents[:1], torch.tensor([601]), group.embeds[:1]).sample
            halves = parts.halves
            features = halves.encode(latents[:1], 601, group.embeds[:1])
            made = halves.decode(features, [601], group.embeds[:1])[0]
        assert (told - wanted).abs().max() <= 1e-5 and (made - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["transfer", "paired", "one-pass"])
def test_a_lora_is_made_and_loads(recipe: Any, folder: Path, method: str) -> None:
    file = run.train_lora(recipe.model_copy(update={"method": method}))
    before, after = (TiuePipeline.from_pretrained(folder) for _ in range(2))
    load_loras(after, [Lora(file)])
    first, second = (p("zorb a", seed=1, output_type="latent").images for p in (before, after))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("targets", [["linear_1", "linear_2"], ["conv_in", "conv_out", "conv"]])
def test_layers_outside_the_blocks_load_as_they_were_trained(
    recipe: Any, folder: Path, targets: list[str]
) -> None:
    """Those of the sizes among them; the reference is merged by hand."""
    file = run.train_lora(recipe.model_copy(update={"method": "transfer", "targets": targets}))
    before, after = (TiuePipeline.from_pretrained(folder) for _ in range(2))
    tensors = load_file(file)
    for name, module in before.unet.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.alpha" in tensors:
            down, up = (tensors.pop(f"{key}.lora_{way}.weight") for way in ("down", "up"))
            scale = tensors.pop(f"{key}.alpha") / len(down)
            change = scale * (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
            assert change.abs().max() > 0, name
            module.weight.data += change
    assert not tensors
    load_loras(after, [Lora(file)])
    first, second = (p("zorb a", seed=1, output_type="latent").images for p in (before, after))
    assert (first - second).abs().max() <= 1e-5 * first.abs().max()
    plain = TiuePipeline.from_pretrained(folder)("zorb a", seed=1, output_type="latent").images
    assert (first - plain).abs().max() > 1e-4


def test_what_could_not_be_loaded_again_is_not_trained(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a diffusers that does not know SDXL's layers of the sizes in kohya's names."""
    monkeypatch.setattr(lora_names, "_SIZES", {})
    asked = recipe.model_copy(update={"targets": ["to_k", "linear_1"]})
    with pytest.raises(TiueError, match=r"a LoRA of add_embedding.linear_1 could not be loaded"):
        run.train_lora(asked)
    assert not recipe.out.with_suffix(".run").exists()
