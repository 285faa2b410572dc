"""The pictures to learn from: a folder of images, each with its caption beside it.

Everything that can be wrong with it is found before training starts, and named.
"""

from __future__ import annotations

import csv
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

IMAGES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif", ".bmp", ".tif"),
    *(".tiff", ".gif", ".jp2", ".ppm"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
OTHERS = (  #: named, not read
    *(".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw", ".tga", ".dds"),
    *(".exr", ".hdr", ".ico", ".icns", ".pcx", ".sgi", ".qoi", ".j2k", ".eps", ".pdf", ".parquet"),
    *VIDEOS,
)
CAPTIONS = (".txt", ".caption")  #: beside an image; else `METADATA`'s, as data sets on the hub have
METADATA = ("metadata.jsonl", "metadata.csv")
OTHER_CAPTIONS = (".json", ".captions", ".cap", ".tags", ".md", ".yaml", ".yml", ".xml", ".csv")
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
        with _opened(self.path) as image:
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
    images = [path for path in files if _is_image(path)]
    if not images:
        raise TiueError(_nothing(folder, files))
    others = [path.name for path in files if path not in images and _is_left_out(path)]
    if others:
        raise TiueError(f"{_names(others)} cannot be read: save as PNG or JPEG, or take away")
    twice = Counter(path.stem for path in images)
    same = [path.name for path in images if twice[path.stem] > 1]
    if same:
        raise TiueError(f"{_names(same)} would share one caption: rename all but one")
    found, broken, bare = [], [], []
    folders = {path.parent.name for path in folder.expanduser().glob("[!.]*/*") if _is_image(path)}
    if inside := sorted(name for name in folders if not name.endswith(".run")):
        raise TiueError(f"pictures in {_names(inside)} are not read: move them up, or elsewhere")
    said = _captions(files, {path.name for path in images})
    for path in images:
        try:
            with _opened(path) as image:
                if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
                    raise TiueError(f"{count} pictures in one")
                size = ImageOps.exif_transpose(_eight_bits(image)).size
        except Exception as error:  # decoders raise whatever they like
            why = str(error) if isinstance(error, TiueError) else type(error).__name__
            broken.append(f"{path.name} ({why})")
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


def _opened(path: Path) -> Image.Image:
    """As one of `FORMATS` that this Pillow has; whatever its name, no other decoder sees it."""
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, loaded; 16-bit grays scaled to 8, which PIL would cut off to white.

    Raises:
        TiueError: floating-point or 32-bit pixels, of which nothing says what is white.
    """
    image.load()
    if image.mode == "F":
        raise TiueError("floating-point pixels")
    if not image.mode.startswith("I"):
        return image
    import numpy as np

    pixels = np.asarray(image).astype(np.float64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise TiueError("32-bit pixels")
    deep = image.mode != "I" or pixels.max() > 255
    scaled = Image.fromarray((pixels / (257 if deep else 1)).round().astype(np.uint8))
    scaled.info = dict(image.info)
    clear = scaled.info.pop("transparency", None)  # the gray that is transparent, in 16 bits
    if clear is not None:
        scaled.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return scaled


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def _is_left_out(path: Path) -> bool:
    """Whether a file is a picture, by its name or by its content, that would not be learned."""
    if path.suffix.lower() in OTHERS:
        return True
    try:
        with _opened(path):
            return True
    except Exception:  # no picture; decoders raise whatever they like
        return False


def _captions(files: list[Path], images: set[str]) -> dict[str, str]:
    """Captions by an image's name or stem; a text file beside an image goes before `METADATA`.

    Raises:
        TiueError: one is in a file that is not read, or says nothing of an image that is here.
    """
    said: dict[str, str] = {}
    for path in files:
        for row in _rows(path) if path.name.lower() in METADATA else []:
            name = row.get("file_name")
            text = row.get("text", row.get("caption", 0))
            if name not in images or not (text is None or isinstance(text, str)):
                found = "no text" if name in images else "no image of that name is here"
                raise TiueError(f"{path} says of {name!r:.80}: {found}: repair it, or remove it")
            said[name] = text or ""
    for path in sorted(files, key=lambda path: path.suffix.lower() == ".txt"):  # which goes last
        if path.suffix.lower() in CAPTIONS:
            said[path.stem] = _text(path)
    bare = {Path(name).stem for name in images if name not in said and Path(name).stem not in said}
    for path in files:
        if path.suffix.lower() in OTHER_CAPTIONS and path.stem in bare:
            raise TiueError(
                f"{path} is not read: write the caption into {path.stem}.txt, or take it away"
            )
    return said


def _rows(path: Path) -> list[dict[str, Any]]:
    """What a data set's own file says of each image."""
    lines, table = _text(path).splitlines(keepends=True), path.suffix.lower() == ".csv"
    rows: list[Any]
    try:
        rows = [*csv.DictReader(lines)] if table else [json.loads(x) for x in lines if x.strip()]
    except (ValueError, csv.Error):
        rows = [None]
    if not all(isinstance(row, dict) for row in rows):
        raise TiueError(
            f"{path} is not {'CSV' if table else 'JSON lines'}: repair it, or remove it"
        )
    return rows


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that some editors write
    except (OSError, UnicodeDecodeError):
        text = "\0"
    if "\0" in text:  # UTF-16, whose letters may be valid UTF-8
        raise TiueError(f"the caption {path} is not readable text: save it as UTF-8")
    return text


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
