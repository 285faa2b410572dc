"""Images are written whole, never over another picture, and say how to make them again."""

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tiue_core.errors import TiueError
from tiue_core.io import files
from tiue_core.io.images import (
    a1111_parameters,
    read_metadata,
    save_image,
    slug,
)

METADATA = {
    "prompt": "a cat, on a blue background",
    "seed": 7,
    "width": 16,
    "height": 8,
    "student": "stickers",
    "student_hash": "0123456789abcdef" * 4,
    "timesteps": [751, 501, 251, 1],
    "loras": [{"name": "style", "strength": 0.8, "hash": "ab" * 32}],
    "dtype": "float32",
    "version": "0.1.0",
}


def picture(red: int = 0) -> Image.Image:
    return Image.new("RGB", (16, 8), (red, 20, 30))


def test_metadata_comes_back_and_pixels_too(tmp_path: Path) -> None:
    path = save_image(picture(9), tmp_path / "new" / "folder", METADATA)
    assert path.name == "0000_a-cat-on-a-blue-background_7.png"
    assert read_metadata(path) == METADATA
    with Image.open(path) as image:
        assert image.tobytes() == picture(9).tobytes()
        assert image.text["parameters"] == a1111_parameters(METADATA)


def test_parameters_are_the_format_of_a1111() -> None:
    prompt, line = a1111_parameters(METADATA).split("\n")
    assert prompt == "a cat, on a blue background <lora:style:0.8>"
    assert line == (
        "Steps: 4, Sampler: TiUE, CFG scale: 1, Seed: 7, Size: 16x8, Model hash: 0123456789, "
        'Model: stickers, Lora hashes: "style: abababababab", Version: TiUE 0.1.0'
    )
    plain = a1111_parameters({**METADATA, "loras": [], "student": "a, b: c"})
    assert 'Model: "a, b: c", Version' in plain and "Lora" not in plain


@pytest.mark.parametrize(
    "prompt", ["猫と青い背景", "émoji 🐱", 'quotes "and" \\ slash', "two\nlines", ""]
)
def test_any_prompt_survives(tmp_path: Path, prompt: str) -> None:
    path = save_image(picture(), tmp_path, {**METADATA, "prompt": prompt})
    assert read_metadata(path)["prompt"] == prompt
    with Image.open(path) as image:
        assert image.text["parameters"].startswith(prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con\x00 |?*", "c-con"),
        ("猫と 青い背景", "猫と-青い背景"),
        ("Ünïcode ﬁ", "ünïcode-fi"),
        ("🐱", "image"),
        ("", "image"),
        ("\udcff", "image"),
        ("__under__score__", "under-score"),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_file_names_fit_every_file_system(tmp_path: Path) -> None:
    for prompt in ("word " * 200, "𝔘𠮷" * 500, "x" * 1000):
        metadata = {**METADATA, "prompt": prompt, "seed": 2**63 - 1}
        path = save_image(picture(), tmp_path, metadata)
        assert len(path.name.encode()) <= 200


def test_index_counts_on_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "0041_mine.png").write_bytes(b"somebody's")
    (tmp_path / "notes_7.png").write_bytes(b"not counted")
    first = save_image(picture(1), tmp_path, METADATA)
    second = save_image(picture(2), tmp_path, METADATA)
    assert [first.name[:4], second.name[:4]] == ["0042", "0043"]
    assert save_image(picture(1), tmp_path, METADATA) == first  # the same command given again
    assert (tmp_path / "0041_mine.png").read_bytes() == b"somebody's"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_race_for_the_name_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    raced = []

    def slow_link(source: str, target: Path) -> None:
        if not raced:  # another process takes the name in between
            raced.append(target)
            Path(target).write_bytes(b"theirs")
        link(source, target)

    monkeypatch.setattr(files.os, "link", slow_link)
    path = save_image(picture(), tmp_path, METADATA)
    assert path.name.startswith("0001") and raced[0].read_bytes() == b"theirs"


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    assert read_metadata(save_image(picture(), tmp_path, METADATA)) == METADATA
    with pytest.raises(FileExistsError):
        files.write_atomically(next(tmp_path.iterdir()), b"", overwrite=False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(TiueError) as error:
        save_image(picture(), tmp_path, METADATA)
    assert "\n" not in str(error.value)
    assert ("no space left" in str(error.value)) == (code != errno.EIO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TiueError, match="cannot be written"):
        save_image(picture(), tmp_path, METADATA)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TiueError, match="cannot be written: choose a folder"):
        files.check_writable(tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(TiueError, match="folder"):
            save_image(picture(), folder, METADATA)
        with pytest.raises(TiueError, match="folder"):
            files.check_writable(folder)
    assert (tmp_path / "out").read_text() == "a file"


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = save_image(picture(), tmp_path, METADATA)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    picture().save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    picture().save(tmp_path / "photo.jpg")
    whole = save_image(picture(), tmp_path / "ours", METADATA).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    for name, text in (
        ("deep", "[" * 100_000),
        ("list", "[1]"),
        ("seed", json.dumps({"prompt": ""})),
    ):
        chunks = PngInfo()
        chunks.add_text("tiue", text)
        picture().save(tmp_path / f"{name}.png", pnginfo=chunks)
    names = ("plain.png", "text.png", "photo.jpg", "cut.png", "deep.png", "list.png", "seed.png")
    for name in (*names, "absent.png"):
        with pytest.raises(TiueError) as error:
            read_metadata(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_a_file_is_replaced_not_written_over(tmp_path: Path) -> None:
    """Who has the old file open, or linked, keeps the old bytes whole."""
    path, other = tmp_path / "a.png", tmp_path / "other.png"
    path.write_bytes(b"old")
    other.hardlink_to(path)
    files.write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"new and longer" and other.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "other.png"]
