"""Pictures as PNG, JPEG or WebP bytes, with metadata that other tools read.

| | A1111 and galleries | `tiue generate --like` | ComfyUI |
| --- | --- | --- | --- |
| PNG | text chunk `parameters` | text chunk `tiue` | text chunks `prompt`, `workflow` |
| JPEG, WebP | EXIF UserComment | EXIF ImageDescription | EXIF Model, Make |
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from ..errors import TiueError
from ..io.images import a1111_parameters, encode_png


class PictureError(TiueError):
    """One picture cannot be written; others can."""


SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
QUALITY = 95
_DESCRIPTION, _MAKE, _MODEL, _COMMENT, _EXIF = 0x010E, 0x010F, 0x0110, 0x9286, 0x8769


def encode(
    image: Any,
    metadata: Mapping[str, Any] | None,
    kind: str = "png",
    *,
    comfyui: Mapping[str, Any] | None = None,
) -> bytes:
    """A PIL image as the bytes of a file.

    Args:
        metadata: see `images.a1111_parameters`; None leaves all metadata out.
        kind: a key of `SUFFIXES`.
        comfyui: ComfyUI's `prompt` and `workflow`, if the picture was made there.

    Raises:
        PictureError: the metadata is too long for JPEG, or the picture is no picture of that kind.
    """
    buffer = io.BytesIO()
    if metadata is None:
        image.save(buffer, format=kind.upper(), **_options(kind))
        return buffer.getvalue()
    if kind == "png":
        return encode_png(image, dict(metadata), comfyui)
    try:
        image.save(buffer, format=kind.upper(), exif=_exif(metadata, comfyui), **_options(kind))
    except ValueError as error:
        if "exif" not in str(error).lower():
            raise PictureError(f"it cannot be written as {kind} ({error}): use PNG") from None
        raise PictureError("the metadata is too long for JPEG: use PNG, or --no-metadata") from None
    return buffer.getvalue()


def _options(kind: str) -> dict[str, Any]:
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
