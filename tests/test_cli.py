"""The command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helpers_students as helpers
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from tiue_core import cli, students
from tiue_core.cli import generate
from tiue_core.cli import student as student_command
from tiue_core.io import files
from tiue_core.io.images import read_metadata

ROOT = Path(__file__).parents[1]


@dataclass
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def error(self) -> str:
        """The one line of a failure."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ") and "Traceback" not in line
        return line


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache without a network; the small student in the place of the built-in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    built_in = students.Student("stickers", "small", "Apache-2.0", folder=student)
    monkeypatch.setitem(students.REGISTRY, "stickers", built_in)


@pytest.fixture
def tiue(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*arguments: str | Path) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Ended(int(ended.value.code or 0), *capfd.readouterr())

    return run


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


# --- what it makes -------------------------------------------------------------------------


def test_like_paints_in_the_precision_of_the_picture(tiue: Any) -> None:
    first = tiue("generate", "a cat", "--dtype", "bfloat16", "--device", "cpu", "--json").json
    again = tiue(
        "generate", "--like", first["images"][0]["path"], "--device", "cpu", "--out", "b", "--json"
    ).json
    plain = tiue("generate", "a cat", "--device", "cpu", "--out", "c", "--json").json
    paths = [made["images"][0]["path"] for made in (first, again, plain)]
    assert read_metadata(Path(paths[1]))["dtype"] == "bfloat16"
    one, two, three = (pixels(path) for path in paths)
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_generate_writes_what_the_pipeline_paints(tiue: Any, student: Path) -> None:
    ended = tiue("generate", "a cat", "a dog", "--seed", "5", "--count", "3", "--device", "cpu")
    assert (ended.status, ended.err) == (0, "")
    paths = ended.out.splitlines()
    assert [Path(path).name for path in paths] == [
        f"{i:04d}_{slug}_{seed}.png"
        for i, (slug, seed) in enumerate((s, n) for s in ("a-cat", "a-dog") for n in (5, 6, 7))
    ]
    pipe = students.load(student, device="cpu")
    expected = pipe(["a cat", "a dog"], seed=[5, 6, 7, 5, 6, 7], count=3).images
    difference = [
        np.abs(pixels(p) - np.asarray(e)).max() for p, e in zip(paths, expected, strict=True)
    ]
    assert max(difference) <= 1  # of 255
    assert {path.suffix for path in Path("out").iterdir()} == {".png"}


def test_metadata_is_enough_to_make_it_again(tiue: Any, tmp_path: Path, student: Path) -> None:
    lora = helpers.write_lora(tmp_path / "my style.safetensors", helpers.lora_tensors())
    settings = [
        *("--seed", "9", "--width", "24", "--height", "12", "--steps", "3"),
        *("--dtype", "float32", "--decoders", "fast"),
    ]
    ended = tiue("generate", "a cat, 猫", *settings, "--lora", f"{lora}:0.5", "--json")
    assert (ended.status, ended.err) == (0, "")
    (made,) = ended.json["images"]
    metadata = read_metadata(made["path"])
    assert metadata["student_hash"] == students.find(student).content_hash()
    assert metadata["loras"] == [
        {"name": "my style", "strength": 0.5, "hash": files.tensors_hash(lora)}
    ]
    assert (metadata["steps"], metadata["decoders"]) == (3, "fast")
    assert metadata["timesteps"] == [667, 334]  # of 667, 334, 1
    assert (metadata["dtype"], metadata["device"]) == ("float32", "cpu")
    assert str(tmp_path) not in json.dumps(metadata)  # a picture does not tell where it was made
    again = tiue("generate", "--from", made["path"], "--lora", lora, "--out", "again", "--json")
    assert again.status == 0
    copy = again.json["images"][0]["path"]
    assert Path(copy).read_bytes() == Path(made["path"]).read_bytes()
    varied = tiue("generate", "--from", made["path"], "--lora", lora, "--seed", "10", "--json").json
    assert varied["images"][0]["seed"] == 10
    assert np.abs(pixels(varied["images"][0]["path"]) - pixels(copy)).max() > 0
    assert "made with LoRA 'my style'" in tiue("generate", "--from", made["path"]).error()


def test_optimized_pictures_are_the_same(tiue: Any) -> None:
    plain = tiue("generate", "a cat", "--count", "2", "--device", "cpu").out.splitlines()
    ended = tiue("generate", "a cat", "--count", "2", "--optimize", "--out", "fast", "--json")
    assert ended.status == 0 and all("not pay" in line for line in ended.err.splitlines())
    for a, b in zip(plain, ended.json["images"], strict=True):
        assert np.abs(pixels(a) - pixels(b["path"])).max() <= 1  # of 255


def test_draft_without_a_tiny_decoder_is_one_line(tiue: Any) -> None:
    refused = tiue("generate", "a cat", "--draft")
    assert refused.status == 1 and "draft decoder" in refused.error()


def test_another_student_under_the_same_name_is_told(
    tiue: Any, tmp_path: Path, student: Path
) -> None:
    made = tiue("generate", "a cat").out.strip()
    other = Path(shutil.copytree(student, tmp_path / "other"))
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    ended = tiue("generate", "--from", made, "--student", other)
    assert ended.status == 0 and ended.err.startswith("warning: ") and "other weights" in ended.err


def test_json_is_one_document(tiue: Any) -> None:
    ended = tiue("generate", "a cat", "--json")
    document = ended.json
    assert ended.status == 0 and ended.err == ""
    (image,) = document["images"]
    assert Path(image["path"]).is_file()
    assert (image["prompt"], image["seed"], image["width"], image["height"]) == ("a cat", 0, 16, 16)
    assert document["student"]["name"] == "stickers" and document["seconds"] > 0


def test_the_same_command_twice_makes_the_same_files(tiue: Any) -> None:
    first, second = (tiue("generate", "a cat", "--count", "2").out for _ in range(2))
    assert first == second and len(list(Path("out").iterdir())) == 2


def test_an_empty_prompt_is_allowed(tiue: Any) -> None:
    ended = tiue("generate", "")
    assert ended.status == 0 and ended.out.strip().endswith("0000_image_0.png")


def test_a_long_prompt_is_kept_with_a_warning(tiue: Any) -> None:
    prompt = "a cat on a blue hat and then some more"
    ended = tiue("generate", prompt, "--count", "9")
    assert ended.status == 0
    (line,) = ended.err.splitlines()  # once, however many batches
    assert line.startswith("warning: ") and line.endswith("some more") and "hat" not in line
    assert read_metadata(Path(ended.out.splitlines()[0]))["prompt"] == prompt


def test_two_loras_say_nothing(tiue: Any, tmp_path: Path) -> None:
    paths = [
        helpers.write_lora(tmp_path / f"{rank}.safetensors", helpers.lora_tensors(rank=rank))
        for rank in (2, 3)
    ]
    ended = tiue("generate", "a cat", "--lora", f"{paths[0]}:0.5", "--lora", paths[1])
    assert (ended.status, ended.err) == (0, "")


# --- what it refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ("generate", 2, "PROMPT"),
        ("generate cat --count 0", 2, "give 1 or more"),
        ("generate cat --count -3", 2, "give 1 or more"),
        ("generate cat --count two", 2, "--count"),
        ("generate cat --colour red", 2, "--colour"),
        ("generate cat --decoders quick", 2, "give exact or fast"),
        ("paint cat", 2, "paint"),
        ("generate cat --width 13", 1, "multiple of 2, such as 12"),
        ("generate cat --height -16", 1, "height is -16"),
        ("generate cat --steps 0", 1, "steps"),
        ("generate cat --seed -1", 1, "seed is -1"),
        ("generate cat --student stikers", 1, "try stickers"),
        ("generate cat --student ./absent", 1, "./absent does not exist"),
        ("generate cat --student model.ckpt", 1, "does not exist"),
        ("generate cat --student someone/student", 1, "HF_HUB_OFFLINE"),
        ("generate cat --student empty", 1, "model_index.json is missing"),
        ("generate cat --student pickle.ckpt", 1, "is a pickle"),
        ("generate cat --student cut.safetensors", 1, "truncated"),
        ("generate cat --lora absent.safetensors", 1, "does not exist"),
        ("generate cat --lora cut.safetensors:0.5", 1, "truncated"),
        ("generate cat --lora pickle.ckpt", 1, "is a pickle"),
        ("generate cat --lora other.safetensors", 1, "LoRA for another model"),
        ("generate cat --dtype float8", 1, "no dtype 'float8'"),
        ("generate cat --device abacus", 1, "device 'abacus'"),
        ("generate cat --out file", 1, "folder"),
        ("generate --from absent.png", 1, "absent.png does not exist"),
        ("generate --from file", 1, "not a readable picture"),
    ],
)
def test_bad_input_is_one_line(
    tiue: Any, tmp_path: Path, arguments: str, status: int, expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 7)
    helpers.write_lora(tmp_path / "other.safetensors", helpers.lora_tensors(context=64))
    ended = tiue(*arguments.split())
    assert ended.status == status and ended.out == ""
    assert expected in ended.error()
    assert not list(tmp_path.rglob("*.png"))
    machine = tiue(*arguments.split(), "--json")
    assert machine.status == status and expected in machine.json["error"]


def test_a_full_disk(tiue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture meets it: the first stays and is reported, of the second there is none."""
    write, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:  # the probe of the folder, the first picture, the second
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    ended = tiue("generate", "a cat", "--count", "3", "--json")
    assert ended.status == 1
    assert "no space left" in ended.error() and "no space left" in ended.json["error"]
    (image,) = ended.json["images"]
    assert [path.name for path in Path("out").iterdir()] == [Path(image["path"]).name]
    assert pixels(image["path"]).shape == (16, 16, 3)


@pytest.mark.parametrize("failure", [RuntimeError("CUDA out of memory.\nTried"), KeyError("x")])
def test_surprises_are_one_line_too(
    tiue: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    from tiue_core import TiuePipeline

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(TiuePipeline, "__call__", fail)
    ended = tiue("generate", "a cat")
    assert ended.status == 1
    assert (
        "out of memory: ask" if isinstance(failure, RuntimeError) else "--debug"
    ) in ended.error()
    assert "Traceback" in tiue("--debug", "generate", "a cat").err
    assert "Traceback" in tiue("generate", "a cat", "--debug").err


def test_control_c(tiue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as early:
        early.setattr(generate, "check_writable", stop)
        ended = tiue("generate", "a cat")
        assert ended.status == 130 and ended.error() == "error: stopped"
    monkeypatch.setattr(student_command, "_paint", stop)
    ended = tiue("generate", "a cat")
    assert ended.status == 130 and ended.error() == "error: stopped: 0 of 1 made"


# --- licences and lists --------------------------------------------------------------------


def test_students_lists_what_can_be_had(tiue: Any) -> None:
    rows = {row["name"]: row for row in tiue("students", "--json").json}
    assert rows["stickers"]["here"] is True
    assert rows["loopfree-sd1.5"]["here"] is False
    text = tiue("students").out
    for word in ("stickers  [here]", "loopfree-sd2.1-base", "CC BY-NC 4.0", "non-commercial"):
        assert word in text
    from tiue_core.baselines.registry import REGISTRY

    lines = text.splitlines()
    for name, system in REGISTRY.items():  # every row, with its licence
        if name not in ("images", "stickers"):
            assert rows[name]["licence"] == system.license
            assert any(x.startswith(f"{name}  [") and x.endswith(system.license) for x in lines)
    here = {name for name, row in rows.items() if row["here"]}
    assert {name for name in REGISTRY if name.startswith("stickers")} <= here


def test_a_download_asks_first(tiue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    info = SimpleNamespace(sha="1" * 40, siblings=[], card_data=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    arguments = ("generate", "a cat", "--student", "loopfree-sd1.5")
    line = tiue(*arguments).error()
    assert "CC BY-NC 4.0" in line and "--accept-license" in line
    accepted = tiue(*arguments, "--accept-license").err.splitlines()
    assert accepted[0].startswith("licence of loopfree-sd1.5") and "no UNet" in accepted[1]


# --- the app itself ------------------------------------------------------------------------


def test_every_command_has_help_with_an_example(tiue: Any) -> None:
    for command in ("generate", "students"):
        ended = tiue(command, "--help")
        assert ended.status == 0 and f"Example: tiue {command}" in ended.out
        assert "--json" in ended.out
    assert "generate" in tiue("--help").out


def test_version_is_the_package_s(tiue: Any) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version and tiue("--version").out.strip() == f"tiue {version[1]}"


def test_starting_up_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tiue_core.cli import build; build(); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} "
        "& sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
