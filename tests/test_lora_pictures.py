"""Pictures and captions to learn from: read as they are meant, or named, never dropped."""

from __future__ import annotations

import json
import struct
import zlib
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
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text\nc.png,"three, in\ntwo lines"\n')
    assert read(folder).captions[2] == "three, in two lines"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "x.png", "text": "x"}', "no image of that name"),
        ("metadata.jsonl", '{"file_name": "d.png", "prompt": "x"}', "no text"),
        ("metadata.jsonl", '{"file_name": "d.png", "text": ["x"]}', "no text"),
        ("metadata.csv", "image,text\nd.png,x", "no image of that name"),
        ("d.json", '{"caption": "x"}', "d.txt"),
        ("d.captions", "x", "d.txt"),
        ("d.txt", "x".encode("utf-16-le"), "UTF-8"),
        ("d.txt", "a thing".encode("utf-16"), "UTF-8"),
        ("d.txt", "dünn".encode("latin-1"), "UTF-8"),
    ],
)
def test_captions_that_are_not_read_are_named(
    folder: Path, file: str, text: str | bytes, said: str
) -> None:
    """With a trigger word, which a picture without a caption would be learned by alone."""
    Image.new("RGB", (64, 64), "blue").save(folder / "d.png")
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TiueError, match=rf"{file}.*{said}") as error:
        read(folder, "zorb")
    assert "\n" not in str(error.value)


KINDS = ["gif", "apng", "jpe", "webp", "jp2", "ppm", "tga", "ico", "dds", "pcx", "eps", "pdf"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_picture_is_left_out_by_its_ending(folder: Path, kind: str) -> None:
    Image.new("RGB", (64, 64), "blue").save(folder / f"d.{kind}")
    (folder / "d.txt").write_text("a blue d")
    if kind in KINDS[:6]:
        seen = np.asarray(read(folder).items[3].open()).mean((0, 1))
        assert np.abs(seen - [0, 0, 255]).max() <= 2
    else:
        with pytest.raises(TiueError, match=rf"d\.{kind} cannot be read"):
            read(folder)


@pytest.mark.parametrize("where", ["d", "d.mp4", "sub/d.png"])
def test_no_picture_is_left_out_by_its_place(folder: Path, where: str) -> None:
    (folder / where).parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / where, format="PNG")
    with pytest.raises(TiueError, match=where.split("/")[0]):
        read(folder)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
def test_pictures_that_move_are_named(folder: Path, kind: str) -> None:
    first, *more = (Image.new("RGB", (64, 64), one) for one in ("blue", "lime", "white"))
    first.save(folder / f"d.{kind}", save_all=True, append_images=more)
    (folder / "d.txt").write_text("a d")
    with pytest.raises(TiueError, match=rf"d\.{kind} \(3 pictures in one\)"):
        read(folder)


def test_a_cameras_second_picture_is_no_other_frame(folder: Path) -> None:
    first, second = (Image.new("RGB", (64, 64), one) for one in ("blue", "lime"))
    first.save(folder / "d.jpg", format="MPO", save_all=True, append_images=[second])
    (folder / "d.txt").write_text("a d")
    assert np.asarray(read(folder).items[3].open())[0, 0, 2] > 250


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((8, 8), 2**30, np.int32), "32-bit"),
        (np.full((8, 8), -5, np.int32), "32-bit"),
        (np.full((8, 8), 0.5, np.float32), "floating-point"),
    ],
)
def test_pixels_without_a_white_are_named(folder: Path, pixels: Any, said: str) -> None:
    Image.fromarray(pixels).save(folder / "d.tif")
    with pytest.raises(TiueError, match=rf"d\.tif \({said} pixels\)"):
        read(folder)


def test_no_decoder_but_those_of_pictures_is_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS file by another name would be handed to a program."""
    from PIL import EpsImagePlugin

    Image.new("RGB", (64, 64)).save(folder / "d.eps")
    (folder / "d.eps").rename(folder / "d.png")
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda self: pytest.fail("opened"))
    with pytest.raises(TiueError, match=r"d\.png"):
        read(folder)


CLEAR: dict[str, Any] = {
    "LA": (Image.new("LA", (64, 64), (0, 0)), {}),
    "P": (Image.new("RGB", (64, 64), "blue").quantize(2), {"transparency": 0}),
    "L": (Image.new("L", (64, 64), 7), {"transparency": 7}),
    "I;16": (Image.fromarray(np.full((64, 64), 30000, np.uint16)), {}),
}


@pytest.mark.parametrize("mode", CLEAR)
def test_what_is_transparent_is_white(folder: Path, mode: str) -> None:
    image, options = CLEAR[mode]
    image.save(folder / "d.png", **options)
    if mode == "I;16":  # Pillow reads the chunk and does not write it
        chunk = b"tRNS" + struct.pack(">H", 30000)
        chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
        whole = (folder / "d.png").read_bytes()
        at = whole.index(b"IDAT") - 4
        (folder / "d.png").write_bytes(whole[:at] + chunk + whole[at:])
    (folder / "d.txt").write_text("a d")
    assert np.asarray(read(folder).items[3].open()).min() == 255


@pytest.mark.parametrize("size", [(1, 1), (1, 1000)])
def test_pictures_of_a_pixel_are_pictures(folder: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "blue").save(folder / "d.png")
    (folder / "d.txt").write_text("a d")
    assert np.asarray(read(folder).items[3].open()).mean((0, 1)).tolist() == [0, 0, 255]


def test_cmyk_and_palettes_and_what_exif_turns(folder: Path) -> None:
    blue = Image.new("RGB", (96, 48), "blue")
    blue.convert("CMYK").save(folder / "d.jpg")
    blue.quantize(2).save(folder / "e.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    blue.save(folder / "f.jpg", exif=exif)
    items = read(folder, "zorb").items[3:]
    for item in items:
        assert np.abs(np.asarray(item.open()).mean((0, 1)) - [0, 0, 255]).max() <= 3
    assert [item.bucket[0] > item.bucket[1] for item in items] == [True, True, False]
