"""The pictures to learn from: a folder of images, each with its caption beside it.

Everything that can be wrong with it is found before training starts, and named.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ...errors import TiueError
from ...io.files import file_hash

IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff")
OTHERS = (".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")  #: not read
CAPTIONS = (".txt", ".caption")  #: beside an image; else `METADATA`'s, as data sets on the hub have
METADATA = "metadata.jsonl"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
FEWEST = 3  #: from less, a LoRA learns the pictures and not what they have in common
WIDEST = 2.0  #: the longest bucket, as long side by short side
_NAMED = 5  #: files an error names before it only counts them


@dataclass(frozen=True)
class Picture:
    """One image, what is said of it, and the size it is trained at (a multiple of `multiple`)."""

    path: Path
    caption: str
    bucket: tuple[int, int]

    def open(self) -> Image.Image:
        """RGB, upright, scaled to cover its bucket and cropped in the middle."""
        with Image.open(self.path) as image:
            upright = ImageOps.exif_transpose(_eight_bits(image))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return ImageOps.fit(upright.convert("RGB"), self.bucket, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Pictures:
    """A whole folder's."""

    folder: Path
    items: tuple[Picture, ...]

    @property
    def captions(self) -> list[str]:
        return [picture.caption for picture in self.items]

    def content_hash(self) -> str:
        """SHA-256 over images and captions, in order of name."""
        total = hashlib.sha256()
        for picture in self.items:
            total.update(bytes.fromhex(file_hash(picture.path)))
            total.update(hashlib.sha256(picture.caption.encode()).digest())
        return total.hexdigest()


def read_pictures(folder: Path, trigger: str | None, *, side: int, multiple: int) -> Pictures:
    """All images of a folder, checked one by one.

    A caption is the text file of the same name, or what `METADATA` says of the image; the trigger
    word goes before one that lacks it, and is all that is said of an image without one.

    Args:
        side: of a square picture, in pixels; other shapes get as many pixels.
        multiple: what the sides of a bucket are multiples of.

    Raises:
        TiueError: no or too few images, some that cannot be read (all named), two of one name,
            captions missing without a trigger word.
    """
    try:
        files = sorted(path for path in folder.expanduser().iterdir() if path.is_file())
    except OSError as error:
        raise TiueError(
            f"{folder} cannot be read ({error.strerror}): give a folder of images"
        ) from None
    files = [path for path in files if not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGES]
    others = [path.name for path in files if path.suffix.lower() in OTHERS]
    if others:
        raise TiueError(f"{_names(others)} cannot be read: save as PNG or JPEG, or take away")
    if not images:
        raise TiueError(_nothing(folder, files))
    twice = Counter(path.stem for path in images)
    same = [path.name for path in images if twice[path.stem] > 1]
    if same:
        raise TiueError(f"{_names(same)} would share one caption: rename all but one")
    found, broken, bare = [], [], []
    said = _captions(files)
    for path in images:
        try:
            with Image.open(path) as image:
                _eight_bits(image)
                size = ImageOps.exif_transpose(image).size
        except Exception as error:  # decoders raise whatever they like
            broken.append(f"{path.name} ({type(error).__name__})")
            continue
        caption = _caption(path, said, trigger)
        if not caption:
            bare.append(path.name)
        found.append(Picture(path, caption, bucket_of(*size, side=side, multiple=multiple)))
    if broken:
        raise TiueError(f"cannot be read: {_names(broken)}: repair them, or take them away")
    if bare:
        raise TiueError(
            f"no caption beside {_names(bare)}: write one into a .txt of the same name, "
            "or give a trigger word"
        )
    if len(found) < FEWEST:
        raise TiueError(
            f"{folder} holds {len(found)} image{'s' * (len(found) > 1)}, which is too little to "
            f"learn from: give {FEWEST} or more, a dozen is better"
        )
    return Pictures(folder, tuple(found))


def bucket_of(width: int, height: int, *, side: int, multiple: int) -> tuple[int, int]:
    """The size nearest in shape with at most ``side``² pixels and sides of ``multiple``.

    >>> bucket_of(3000, 2000, side=512, multiple=64)
    (576, 384)
    """
    longest = int(side * math.sqrt(WIDEST)) // multiple
    sides = range(max(1, int(side / math.sqrt(WIDEST)) // multiple), longest + 1)
    sizes = [(w, h) for w in sides for h in sides if w * h * multiple**2 <= side**2]
    wanted = math.log(width / height)
    w, h = min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - wanted), 9), -s[0] * s[1]))
    return w * multiple, h * multiple


def as_array(image: Image.Image) -> Any:
    """An RGB image as a float32 tensor (3, H, W) in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, loaded; 16-bit grays scaled to 8, which PIL would cut off to white."""
    image.load()
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if not image.mode.startswith("I"):
        return image
    import numpy as np

    pixels = np.asarray(image).astype(np.float64)
    deep = image.mode != "I" or pixels.max() > 255
    scaled = Image.fromarray((pixels / (257 if deep else 1)).round().clip(0, 255).astype(np.uint8))
    scaled.info = dict(image.info)
    return scaled


def _captions(files: list[Path]) -> dict[str, str]:
    """Captions by an image's name or stem; a text file beside an image goes before `METADATA`."""
    said: dict[str, str] = {}
    for path in files:
        if path.name == METADATA:
            for line in _text(path).splitlines():
                try:
                    row = json.loads(line or "{}")
                    text = row.get("text") or row.get("caption") or ""
                    said[str(row.get("file_name"))] = str(text)
                except (ValueError, AttributeError):
                    raise TiueError(f"{path} is not JSON lines: repair it, or remove it") from None
    for path in sorted(files, key=lambda path: path.suffix.lower() == ".txt"):  # which goes last
        if path.suffix.lower() in CAPTIONS:
            said[path.stem] = _text(path)
    return said


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that some editors write
    except (OSError, UnicodeDecodeError):
        raise TiueError(f"the caption {path} is not readable text: save it as UTF-8") from None


def _caption(path: Path, said: Mapping[str, str], trigger: str | None) -> str:
    text = " ".join(said.get(path.stem, said.get(path.name, "")).split())
    if trigger and trigger.lower() not in text.lower():
        return f"{trigger}, {text}" if text else trigger
    return text


def _nothing(folder: Path, files: list[Path]) -> str:
    if any(path.suffix.lower() in VIDEOS for path in files):
        return f"{folder} holds videos and no images: take single frames from them, as PNG or JPEG"
    return f"{folder} holds no images: give a folder of PNG, JPEG or WebP"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
