"""Pictures on disk, which carry what is needed to make them again.

| | A1111 and galleries | `tiue generate --like` | ComfyUI |
| --- | --- | --- | --- |
| PNG | text chunk `parameters` | text chunk `tiue` | text chunks `prompt`, `workflow` |
| JPEG, WebP | EXIF UserComment | EXIF ImageDescription | EXIF Model, Make |
"""

import io
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError
from .files import write_atomically

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
QUALITY = 95  # of JPEG and WebP
_DESCRIPTION, _MAKE, _MODEL, _COMMENT, _EXIF = 0x010E, 0x010F, 0x0110, 0x9286, 0x8769
_SLUG_LENGTH = 60  # characters of the prompt in a file name
_SLUG_BYTES = 150  # and bytes: most file systems stop at 255 for the whole name


class PictureError(TiueError):
    """One picture cannot be written; others can."""


def slug(prompt: str) -> str:
    """The prompt as part of a file name: letters of any script and digits, dashes between.

    >>> slug("A cat, on a *blue* background!")
    'a-cat-on-a-blue-background'
    """
    text = unicodedata.normalize("NFKC", prompt).casefold()
    words = re.findall(r"[^\W_]+", text)
    text = "-".join(words)[:_SLUG_LENGTH]
    text = text.encode()[:_SLUG_BYTES].decode(errors="ignore").strip("-")
    return text or "image"


def save_image(image: Any, folder: Path, metadata: dict[str, Any]) -> Path:
    """Save a PIL image as `{index:04d}_{slug}_{seed}.png`; return the path.

    The index counts on from the folder's highest, so nothing is overwritten. Where the very same
    bytes lie there already (the command was given twice), that file is the answer.

    Args:
        metadata: holds `prompt` and `seed` at least; see `a1111_parameters` for the rest.

    Raises:
        TiueError: the folder cannot be written or the disk is full; no partial file is left.
    """
    data = encode_png(image, metadata)
    tail = f"_{slug(metadata['prompt'])}_{metadata['seed']}.png"
    taken = -1
    for path in sorted(folder.glob("[0-9]*_*.png")):
        index = path.name.partition("_")[0]
        if not index.isascii() or not index.isdecimal():
            continue
        taken = max(taken, int(index))
        if path.name == index + tail and path.read_bytes() == data:
            return path
    while True:
        taken += 1
        path = folder / f"{taken:04d}{tail}"
        try:
            write_atomically(path, data, overwrite=False)
        except FileExistsError:  # another process was faster
            continue
        return path


def encode_png(
    image: Any, metadata: dict[str, Any], comfyui: Mapping[str, Any] | None = None
) -> bytes:
    """A PIL image as PNG bytes with the two text chunks, and ComfyUI's where it has them."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in (comfyui or {}).items():
        chunks.add_text(key, json.dumps(value))
    chunks.add_text("parameters", a1111_parameters(metadata))
    chunks.add_text("tiue", json.dumps(metadata, sort_keys=True))  # ASCII, so plain tEXt
    buffer = io.BytesIO()
    # level 4: half the time of 6, and within 1% of its size
    image.save(buffer, format="PNG", pnginfo=chunks, compress_level=4)
    return buffer.getvalue()


def encode(
    image: Any,
    metadata: Mapping[str, Any] | None,
    kind: str = "png",
    *,
    comfyui: Mapping[str, Any] | None = None,
) -> bytes:
    """A PIL image as the bytes of a file.

    Args:
        metadata: see `a1111_parameters`; None leaves all metadata out.
        kind: a key of `SUFFIXES`.
        comfyui: ComfyUI's `prompt` and `workflow`, if the picture was made there.

    Raises:
        PictureError: the metadata is too long for JPEG, or the picture is no picture of that kind.
    """
    buffer = io.BytesIO()
    if metadata is None:
        image.save(buffer, format=kind.upper(), **_quality(kind))
        return buffer.getvalue()
    if kind == "png":
        return encode_png(image, dict(metadata), comfyui)
    try:
        image.save(buffer, format=kind.upper(), exif=_exif(metadata, comfyui), **_quality(kind))
    except ValueError as error:
        if "exif" not in str(error).lower():
            raise PictureError(f"it cannot be written as {kind} ({error}): use PNG") from None
        raise PictureError("the metadata is too long for JPEG: use PNG, or --no-metadata") from None
    return buffer.getvalue()


def _quality(kind: str) -> dict[str, Any]:
    # 4:4:4 keeps the edges of saturated things sharp
    return {"jpeg": {"quality": QUALITY, "subsampling": 0}, "webp": {"quality": QUALITY}}.get(
        kind, {}
    )


def _exif(metadata: Mapping[str, Any], comfyui: Mapping[str, Any] | None) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION] = "tiue:" + json.dumps(metadata, sort_keys=True)  # ASCII
    for tag, key in ((_MODEL, "prompt"), (_MAKE, "workflow")):  # where ComfyUI's page looks
        if comfyui and comfyui.get(key) is not None:
            exif[tag] = f"{key}:{json.dumps(comfyui[key])}"
    parameters = a1111_parameters(dict(metadata))
    comment = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
    exif.get_ifd(_EXIF)[_COMMENT] = comment
    return exif


def a1111_parameters(metadata: dict[str, Any]) -> str:
    """The line-and-pairs format of A1111's `parameters` chunk.

    Reads `prompt`, `negative`, `seed`, `width`, `height`, `timesteps`, `student`, `student_hash`,
    `loras` and `version`. A student has no guidance, which that format writes as a CFG scale of 1;
    other systems say theirs in `sampler` and `guidance`.
    """
    loras = metadata.get("loras") or []
    prompt = " ".join(
        [metadata["prompt"], *(f"<lora:{lora['name']}:{lora['strength']:g}>" for lora in loras)]
    ).strip()
    # readers split at these words; a blank before the colon is the same to a text encoder
    prompt = re.sub(r"(?i)(negative prompt):", r"\1 :", prompt)
    pairs = {
        "Steps": len(metadata.get("timesteps") or []) or None,
        "Sampler": metadata.get("sampler", "TiUE"),
        "CFG scale": metadata.get("guidance", 1),
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model hash": (metadata.get("student_hash") or "")[:10],
        "Model": _quoted(metadata.get("student") or ""),
        "Lora hashes": ", ".join(f"{lora['name']}: {lora['hash'][:12]}" for lora in loras),
        "Version": f"TiUE {metadata.get('version', '')}".strip(),
    }
    if loras:
        pairs["Lora hashes"] = json.dumps(pairs["Lora hashes"], ensure_ascii=False)
    line = ", ".join(f"{key}: {value}" for key, value in pairs.items() if value not in (None, ""))
    negative = metadata.get("negative")
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def _quoted(value: str) -> str:
    # the format quotes values that hold its own separators
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def read_metadata(path: Path) -> dict[str, Any]:
    """What a picture that this library saved says of its making: its `tiue` chunk, or EXIF.

    Raises:
        TiueError: no such file, not a PNG, JPEG or WebP, or one that does not say.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            text = getattr(image, "text", {}).get("tiue")
            if text is None:
                described = str(image.getexif().get(_DESCRIPTION, ""))
                text = described.removeprefix("tiue:") if described.startswith("tiue:") else None
    except FileNotFoundError:
        raise TiueError(f"{path} does not exist: check the path") from None
    except Image.DecompressionBombError:
        raise TiueError(f"{path} has too many pixels: use a picture made by tiue") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise TiueError(f"{path} is not a readable picture: use one made by tiue") from error
    try:
        metadata = json.loads(text or "")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
            raise ValueError
        if not isinstance(metadata.get("seed"), int):
            raise ValueError
    except (ValueError, RecursionError):
        raise TiueError(
            f"{path} does not say how it was made: use an image saved by tiue"
        ) from None
    return metadata
