"""Pictures and captions to learn from: read as they are meant, or named, never dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiue_core.errors import TiueError
from tiue_core.train.lora.pictures import read_pictures


def read(folder: Path, trigger: str | None = None) -> Any:
    return read_pictures(folder, trigger, side=64, multiple=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a red {name}")
    return tmp_path


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_gray(folder: Path, kind: str) -> None:
    pixels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    if kind == "I":
        Image.fromarray(pixels.astype(np.int32)).save(folder / "b.tif")
        (folder / "b.png").unlink()
    elif kind == "I;16B":
        Image.frombytes("I;16B", (64, 64), pixels.astype(">u2").tobytes()).save(folder / "b.tif")
        (folder / "b.png").unlink()
    else:
        Image.fromarray(pixels).save(folder / "b.png")
    seen = np.asarray(read(folder).items[1].open())[..., 0]
    assert np.abs(seen - pixels / 257).max() <= 1


@pytest.mark.parametrize("suffix", [".jfif", ".avif"])
def test_other_endings_of_pictures(folder: Path, suffix: str) -> None:
    if suffix == ".avif":
        features = pytest.importorskip("PIL.features")
        if not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (64, 64), "blue")
    image.save(folder / f"d{suffix}", format="JPEG" if suffix == ".jfif" else "AVIF")
    (folder / "d.txt").write_text("a blue d")
    assert "a blue d" in read(folder).captions


@pytest.mark.parametrize("suffix", [".heic", ".PSD"])
def test_what_cannot_be_read_is_named(folder: Path, suffix: str) -> None:
    (folder / f"d{suffix}").write_bytes(b"?")
    with pytest.raises(TiueError, match=f"d{suffix}"):
        read(folder)


def test_captions_in_every_way(folder: Path) -> None:
    for name in "abc":
        (folder / f"{name}.txt").unlink()
    (folder / "a.caption").write_text("one")
    (folder / "b.TXT").write_bytes("\ufefftwo".encode())
    rows = [{"file_name": "c.png", "text": "three"}, {"file_name": "a.png", "text": "not this"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(folder).captions == ["one", "two", "three"]
    (folder / "metadata.jsonl").write_text("{")
    with pytest.raises(TiueError, match="not JSON lines"):
        read(folder)
