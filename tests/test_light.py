"""Without PyTorch: what paints, and what says in one line that it needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tiue_core.export.metadata import read_set
from tiue_core.optimize.cache import SHIPPED
from tiue_core.students import resolve

ROOT = Path(__file__).parents[1]
BLOCKED = ("torch", "diffusers", "transformers", "peft", "accelerate")


def run(*arguments: str, cwd: Path, blocked: bool = True) -> Any:
    """`tiue` in a process of its own, with torch and its kin made impossible to import."""
    block = f"sys.modules.update(dict.fromkeys({BLOCKED!r}));" if blocked else ""
    script = f"import sys;{block}from tiue_core.cli import main;main({list(arguments)!r})"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_the_shipped_graphs_are_of_the_shipped_weights() -> None:
    """`python -m tiue_core.stickers.make_graphs` makes them again."""
    about, _ = read_set(SHIPPED)
    assert about["student_hash"] == resolve.find("stickers").content_hash()
    weights = sum(path.stat().st_size for path in SHIPPED.parent.rglob("*.safetensors"))
    assert weights + sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 60_000_000


def test_a_first_picture_and_a_list_without_torch(tmp_path: Path) -> None:
    done = run("generate", "a cat on a blue background", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["images"][0]["path"]
    with Image.open(tmp_path / made) as image:
        record = json.loads(image.text["tiue"])  # type: ignore[attr-defined]
        assert image.size == (128, 128) and record["engine"] in ("onnxruntime", "openvino")
    again = run("generate", "--like", made, "--out", "again", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    copy = tmp_path / json.loads(again.stdout)["images"][0]["path"]
    assert copy.read_bytes() == (tmp_path / made).read_bytes()

    (tmp_path / "list.csv").write_text("prompt,seed\na cat on a blue background,0\na dog,1\n")
    listed = run("batch", "list.csv", "--out", "list", "--json", "--no-sheet", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert len(list((tmp_path / "list").glob("*.png"))) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a cat", "--engine", "torch"),
        ("generate", "a cat", "--decoders", "fast"),
        ("export", "stickers", "--out", "a.onnx"),
        ("cache", "--make", "stickers"),
        ("lora", "pictures", "--out", "a.safetensors"),
        ("bench",),
    ],
)
def test_what_needs_torch_says_so_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    if arguments[0] == "lora":
        (tmp_path / "pictures").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    done = run(*arguments, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ")
    assert line.endswith("pip install 'tiue[torch]'"), line
