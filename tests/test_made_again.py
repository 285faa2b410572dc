"""A picture comes back from what it says of itself, or a line says why it may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tiue_core import cli, students
from tiue_core.io.files import file_hash, tensors_hash
from tiue_core.io.images import read_metadata
from tiue_core.students.checkpoint import Parts, write
from tiue_core.students.lora import Lora

Run = Callable[..., tuple[int, list[Path], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """``tiue generate``: its status, the pictures it made, and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def run(*arguments: Any) -> tuple[int, list[Path], str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", *map(str, arguments), "--engine", "torch", "--device", "cpu"])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), [Path(line) for line in out.splitlines()], err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return helpers.make_student(tmp_path / "one")


def another(folder: Path, part: str) -> Path:
    """The same student with other weights in one part."""
    other = folder.with_name(f"other-{part}")
    shutil.copytree(folder, other)
    (file,) = (other / part).glob("*.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file)
    return other


def alone(folder: Path) -> Path:
    file = folder.with_name("files") / "alone.safetensors"
    file.parent.mkdir()
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", file)
    return file


def test_a_single_file_is_hashed_with_its_base(run: Run, folder: Path) -> None:
    file, other = alone(folder), another(folder, "vae")
    hashes = [students.find(file, base=base).content_hash() for base in (folder, other)]
    assert hashes[0] != hashes[1]
    unused = another(folder, "unet")  # the file has its own
    assert students.find(file, base=unused).content_hash() == hashes[0]
    status, (picture,), said = run("a cat", "--student", file, "--base", folder)
    assert (status, said) == (0, "")
    metadata = read_metadata(picture)
    assert (metadata["base"], metadata["student_hash"]) == ("one", hashes[0])
    again = ["--like", picture, "--student", file, "--out", "again"]
    status, (same,), said = run(*again, "--base", folder)
    assert (status, said) == (0, "") and same.read_bytes() == picture.read_bytes()
    status, (differs,), said = run(*again, "--base", other)
    assert status == 0 and "made with other weights" in said
    assert differs.read_bytes() != picture.read_bytes()


def test_a_base_that_was_found_is_said_too(run: Run, folder: Path) -> None:
    file = folder / "alone.safetensors"
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", file)
    _, (picture,), _ = run("a cat", "--student", file)
    assert read_metadata(picture)["base"] == "one"
    (vae,) = (folder / "vae").glob("*.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in load_file(vae).items()}, vae)
    status, _, said = run("--like", picture, "--student", file, "--out", "again")
    assert status == 0 and "made with other weights" in said


def test_a_folder_that_has_moved_is_asked_for(run: Run, folder: Path) -> None:
    _, (picture,), _ = run("a cat", "--student", folder)
    digest = students.find(folder).content_hash()
    moved = folder.rename(folder.with_name("moved"))
    status, made, said = run("--like", picture, "--out", "again")
    assert (status, made) == (1, []) and said.count("\n") == 1
    assert f"'one' ({digest[:10]})" in said and "add --student" in said
    status, (same,), said = run("--like", picture, "--student", moved, "--out", "again")
    assert (status, said) == (0, "")
    assert torch.equal(*(_pixels(path) for path in (picture, same)))


@pytest.mark.parametrize("given", [1, 2])
def test_one_lora_twice_comes_back(run: Run, folder: Path, given: int) -> None:
    lora = helpers.write_lora(folder / "a.safetensors", helpers.lora_tensors())
    twice = ["--lora", f"{lora}:0.5", "--lora", f"{lora}:0.25"]
    _, (picture,), _ = run("a cat", "--student", folder, *twice)
    again = ["--like", picture, "--student", folder, "--out", "again"]
    status, (same,), said = run(*again, *["--lora", lora] * given)
    assert (status, said) == (0, "") and same.read_bytes() == picture.read_bytes()
    _, (once,), _ = run("a cat", "--student", folder, "--lora", f"{lora}:0.5", "--out", "once")
    assert not torch.equal(_pixels(once), _pixels(picture))


def test_a_lora_written_twice_is_the_same_one(run: Run, folder: Path) -> None:
    tensors = helpers.kohya_lora_tensors()
    said = {f"ss_{n}": str(n) for n in range(12)}
    files = [folder / f"{n}.safetensors" for n in range(6)]
    for file in files:
        save_file(tensors, file, said)
    assert len({file_hash(file) for file in files}) > 1  # the library's order is random
    assert len({tensors_hash(file) for file in files}) == 1
    for change in ({**said, "ss_1": "2"}, {**said, "ss_13": "13"}):
        save_file(tensors, files[0], change)
        assert tensors_hash(files[0]) != tensors_hash(files[1])
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, files[0], said)
    assert tensors_hash(files[0]) != tensors_hash(files[1])
    assert Lora(files[1]).is_one(Lora(files[2]).record()["hash"])
    assert Lora(files[1]).is_one(file_hash(files[1]))  # as records were before
    assert not Lora(files[0]).is_one(Lora(files[2]).record()["hash"])
    arguments = ("a cat", "--student", folder, "--lora")
    one, two = (run(*arguments, file)[1][0] for file in files[1:3])
    assert read_metadata(one)["loras"][0]["hash"] == read_metadata(two)["loras"][0]["hash"]


def test_a_checkpoint_written_twice_has_the_same_bytes(folder: Path) -> None:
    parts = Parts.of_folder(folder)
    written = [write(parts, folder / f"{n}.safetensors").read_bytes() for n in range(5)]
    assert len(set(written)) == 1
    length = int.from_bytes(written[0][:8], "little")
    assert next(iter(json.loads(written[0][8 : 8 + length])["__metadata__"])) == "format"
    assert students.load(folder / "0.safetensors", base=folder, device="cpu").unet is not None


def _pixels(path: Path) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image).astype(int))
