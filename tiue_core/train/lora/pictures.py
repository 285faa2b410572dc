"""The pictures to learn from: a folder of images, each with its caption beside it.

Everything that can be wrong with it is found before training starts, and named.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ...errors import TiueError
from ...io.files import file_hash

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
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
            upright = ImageOps.exif_transpose(image)
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

    A caption is the text file of the same name; the trigger word goes before one that lacks it,
    and is all that is said of an image without one.

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
    if not images:
        raise TiueError(_nothing(folder, files))
    twice = Counter(path.stem for path in images)
    same = [path.name for path in images if twice[path.stem] > 1]
    if same:
        raise TiueError(f"{_names(same)} would share one caption: rename all but one")
    found, broken, bare = [], [], []
    for path in images:
        try:
            with Image.open(path) as image:
                image.load()
                size = ImageOps.exif_transpose(image).size
        except Exception as error:  # decoders raise whatever they like
            broken.append(f"{path.name} ({type(error).__name__})")
            continue
        caption = _caption(path, trigger)
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


def _caption(path: Path, trigger: str | None) -> str:
    file = path.with_suffix(".txt")
    try:
        text = " ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""
    except (OSError, UnicodeDecodeError):
        raise TiueError(f"the caption {file} is not readable text: save it as UTF-8") from None
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
