"""SDXL's layout in one file: read, written, and held against diffusers' own reading of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers_systems as hs
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiue_core import TiuePipeline
from tiue_core.cli import main
from tiue_core.core.noise import draw_noise
from tiue_core.errors import TiueError
from tiue_core.pipelines.load import load
from tiue_core.pipelines.sdxl import TiueXLPipeline
from tiue_core.students.checkpoint import Parts, read_made, write

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "SDXL's own": {"use_linear_projection": True, "transformer_layers_per_block": [2, 1]},
}
MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(params=SHAPES)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return hs.sdxl(tmp_path / "xl", second=48, **SHAPES[request.param])


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """Another model of that shape: the folder beside it must not be what is painted with."""
    other = hs.sdxl(tmp_path / "other", second=48)
    for name in MODELS:
        (path,) = (folder / name).glob("*.safetensors")
        tensors = load_file(path)
        moved = {k: v * 1.05 if k.endswith("weight") else v for k, v in tensors.items()}
        (other / name / "config.json").write_bytes((folder / name / "config.json").read_bytes())
        save_file(moved, other / name / path.name, metadata={"format": "pt"})
    return hs.sdxl_file(other, tmp_path / "whole.safetensors")


def stock(file: Path, folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, add_watermarker=False
    )


def one_pass(stock: Any, schedule: Any, prompt: str, seed: int) -> Tensor:
    """K = 1 in diffusers' own words: its text encoders, its sizes, its UNet's forward."""
    noise = draw_noise([seed], (4, 8, 8))
    embeds, _, pooled, _ = stock.encode_prompt(prompt, device="cpu", num_images_per_prompt=1)
    ids = stock._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 48)
    added = {"text_embeds": pooled, "time_ids": ids}
    t = schedule.timesteps[0]
    with torch.no_grad():
        prediction = stock.unet(noise, t, embeds, added_cond_kwargs=added).sample
    return schedule.combine(noise, prediction[None])


def test_a_checkpoint_paints_as_diffusers_own_reading_of_it(folder: Path, file: Path) -> None:
    pipe = TiuePipeline.from_pretrained(file, base=folder, timesteps=[999])
    assert type(pipe) is TiueXLPipeline
    theirs = stock(file, folder)
    for name in MODELS:
        ours, wanted = getattr(pipe, name).state_dict(), getattr(theirs, name).state_dict()
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[key], wanted[key]) for key in ours), name
    latents = pipe("a cat", seed=3, output_type="latent").images
    wanted = one_pass(theirs, pipe.schedule(), "a cat", 3)
    assert (latents - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    base = TiuePipeline.from_pretrained(folder, timesteps=[999])
    plain = base("a cat", seed=3, output_type="latent").images
    assert (latents - plain).abs().max() > 1e-3 * wanted.abs().max()


def test_the_command_and_a_base_beside_it(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder beside the file has what it lacks: a picture without a further word."""
    beside = folder / "whole.safetensors"
    beside.write_bytes(file.read_bytes())
    out = tmp_path / "pictures"
    arguments = ["generate", "a cat", "--student", str(beside), "--engine", "torch"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--device", "cpu", "--out", str(out), "--json"])
    assert end.value.code == 0
    assert len(list(out.glob("*.png"))) == 1


def test_what_it_lacks_is_its_bases(folder: Path, file: Path, tmp_path: Path) -> None:
    """Its own text encoders count, each by itself."""
    for lost in ("conditioner.embedders.0.", "conditioner.embedders.1.", "first_stage_model."):
        kept = {k: v for k, v in load_file(file).items() if not k.startswith(lost)}
        save_file(kept, tmp_path / "some.safetensors")
        pipe = load(tmp_path / "some.safetensors", device="cpu", base=folder)
        plain, whole = TiuePipeline.from_pretrained(folder), load(file, device="cpu", base=folder)
        place = {"0.": "text_encoder", "1.": "text_encoder_2"}.get(lost[-2:], "vae")
        for name in MODELS:
            same = getattr(plain if name == place else whole, name).state_dict()
            mine = getattr(pipe, name).state_dict()
            assert all(torch.equal(mine[key], same[key]) for key in same), (lost, name)


def test_what_does_not_fit_is_one_line(folder: Path, file: Path, tmp_path: Path) -> None:
    sd = hs.sd(tmp_path / "sd")
    tensors = load_file(file)
    name = "conditioner.embedders.1.model.text_projection"
    shapes = {
        "SDXL's sizes beside the prompt": (sd, tensors),
        "text_projection": (folder, {k: v for k, v in tensors.items() if k != name}),
        "no place for": (
            folder,
            {
                **tensors,
                name.replace("text_projection", "transformer.resblocks.2.ln_1.bias"): torch.zeros(
                    48
                ),
            },
        ),
    }
    for said, (base, content) in shapes.items():
        save_file(content, tmp_path / "odd.safetensors")
        with pytest.raises(TiueError, match=said) as error:
            load(tmp_path / "odd.safetensors", device="cpu", base=base)
        assert "\n" not in str(error.value)
    alone = {k: v for k, v in tensors.items() if k.startswith("model.")}
    (tmp_path / "away").mkdir()
    save_file(alone, tmp_path / "away" / "unet.safetensors")
    with pytest.raises(TiueError, match="without the text encoder, second text encoder, VAE"):
        load(tmp_path / "away" / "unet.safetensors", device="cpu")


def test_written_and_read_back(folder: Path, tmp_path: Path) -> None:
    """``tiue export --to checkpoint``: every tensor, K, timesteps, what an empty prompt is."""
    index = json.loads((folder / "model_index.json").read_text())
    changed = {**index, "timesteps": [999], "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(changed))
    out = tmp_path / "student.safetensors"
    arguments = ["export", str(folder), "--to", "checkpoint", "--out", str(out)]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--dtype", "float32"])
    assert end.value.code == 0
    made = read_made(out)
    assert made is not None and (made.timesteps, made.blank_zeros) == ([999], False)
    (folder / "model_index.json").write_text(json.dumps(index))
    first = write(Parts.of_folder(folder), tmp_path / "again.safetensors")
    a, b = load_file(out), load_file(first)
    by_hand = load_file(hs.sdxl_file(folder, tmp_path / "hand.safetensors"))
    by_hand.pop("conditioner.embedders.1.model.logit_scale")
    for one in (b, by_hand):
        assert a.keys() == one.keys() and all(torch.equal(a[key], one[key]) for key in a)
    pipe = load(out, device="cpu", base=folder)
    assert pipe.schedule().timesteps.tolist() == [999]
    own = TiuePipeline.from_pretrained(folder, timesteps=[999], force_zeros_for_empty_prompt=False)
    for prompt in ("a cat", ""):
        latents, wanted = (p(prompt, seed=3, output_type="latent").images for p in (pipe, own))
        # The weights are the same to the bit, as seen above; kernels may add up otherwise.
        assert (latents - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    zeros = TiuePipeline.from_pretrained(folder, timesteps=[999])
    assert (zeros("", seed=3, output_type="latent").images - wanted).abs().max() > 1e-3
    theirs = stock(out, folder)
    for name in MODELS:
        mine, read = getattr(own, name).state_dict(), getattr(theirs, name).state_dict()
        assert all(torch.equal(mine[key], read[key]) for key in read), name
