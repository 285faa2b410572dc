"""A student as one checkpoint: read back by diffusers' own converter, which nobody here wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_students import make_student
from safetensors.torch import load_file

from tiue_core import TiuePipeline
from tiue_core.cli import main
from tiue_core.errors import TiueError
from tiue_core.students.checkpoint import Made, Parts, read_made, write

MODELS = ("unet", "vae", "text_encoder")


def run(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as end:
        main(["export", "--to", "checkpoint", *arguments])
    return end.value.code


@pytest.mark.parametrize("shape", ["1.5", "2.1"])
def test_diffusers_reads_every_tensor_back(tmp_path: Path, shape: str) -> None:
    from diffusers import StableDiffusionPipeline

    second = shape == "2.1"
    folder = make_student(tmp_path / "student", context=1024 if second else 32, linear=second)
    file = write(Parts.of_folder(folder), tmp_path / "student.safetensors")
    names = load_file(file)
    prefix = "cond_stage_model.model." if second else "cond_stage_model.transformer.text_model."
    assert any(name.startswith(prefix) for name in names)
    theirs = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, safety_checker=None
    )
    ours = TiuePipeline.from_pretrained(folder)
    for part in MODELS:
        mine = getattr(ours, part).state_dict()
        read = getattr(theirs, part).state_dict()
        assert mine.keys() == read.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, read[key]), f"{part}: {key}"


def test_the_pipeline_and_the_folder_give_the_same_file(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    files = [
        write(Parts.of_folder(folder), tmp_path / "a.safetensors"),
        write(
            Parts.of_pipeline(TiuePipeline.from_pretrained(folder), "student"),
            tmp_path / "b.safetensors",
        ),
    ]
    a, b = map(load_file, files)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    made = [read_made(file) for file in files]
    assert all(each is not None and (each.steps, each.side) == (4, 16) for each in made)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "student",
    ]


def test_k_and_timesteps_travel_along(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "timesteps": [999]}))
    file = write(Parts.of_folder(folder), tmp_path / "one.safetensors")
    made = read_made(file)
    assert made is not None and (made.steps, made.timesteps, made.side) == (1, [999], 16)
    assert made.schedule().timesteps.tolist() == [999]
    assert made.schedule(4).timesteps.tolist() == [751, 501, 251, 1]
    again = TiuePipeline.from_pretrained(file, base=folder)
    assert again.schedule().timesteps.tolist() == [999]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in student there and back: the very weights, latents to float32's rounding."""
    out = tmp_path / "stickers.safetensors"
    assert run(["stickers", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["path"] == str(out)
    ours, theirs = (TiuePipeline.from_pretrained(name) for name in ("stickers", out))
    for one, other in ((ours.unet, theirs.unet), (ours.vae, theirs.vae)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    one, other = (pipe("a cat", seed=3, output_type="latent").images for pipe in (ours, theirs))
    assert (one - other).abs().max() <= 1e-6 * one.abs().max()  # kernels may add up otherwise


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--out", "x.onnx"], "let it end in .safetensors"),
        (["--out", "x.safetensors", "--steps", "8"], "a checkpoint has weights only"),
        (["--out", "x.safetensors", "--draft"], "a checkpoint has weights only"),
    ],
)
def test_options_that_a_checkpoint_cannot_hold(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stickers", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert expected in said


def test_what_has_no_original_names_is_refused(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    parts = Parts.of_folder(folder)
    for kind in ("text", "text_time"):  # SDXL's own, too, where there is no second text encoder
        unet = {**parts.configs["unet"], "addition_embed_type": kind}
        odd: Any = {**parts.configs, "unet": unet}
        with pytest.raises(TiueError, match=r"unlike SDXL's has no place"):
            write(Parts(parts.made, odd, parts.tensors), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_an_entry_that_is_not_understood_is_refused() -> None:
    assert Made.read(None) is None and Made.read({"format": "pt"}) is None
    good = {"format": 1, **vars(Made.stable_diffusion("x"))}
    assert Made.read({"tiue": json.dumps(good)}) == Made.stable_diffusion("x")
    for bad in ("{", "[]", json.dumps({**good, "format": 2}), json.dumps({**good, "steps": "4"})):
        with pytest.raises(TiueError, match="convert the student again"):
            Made.read({"tiue": bad})
