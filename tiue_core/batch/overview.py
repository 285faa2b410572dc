"""What shows a folder of pictures: `index.html`, with their prompts and a search, one file and no
server; and contact sheets, every row of the list beside its pictures, a page at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ..io.files import own_file, write_atomically

TEMPLATE = Path(__file__).parent / "page.html"
PAGE_MARK = b'<meta name="generator" content="tiue">'
SHEET_MARK = b"contact sheet by tiue"
CELL, CAPTION, GAP = 160, 220, 8  # px
COLUMNS, ROWS = 8, 12
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # inside <script>, JSON stays JSON


def html_index(folder: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write `index.html` for pictures of a manifest; return the path."""
    lines = []
    for record in records:
        entry = {key: record.get(key, "") for key in ("file", "prompt", "line")}
        entry["seed"] = str(record.get("seed", ""))  # a seed may be larger than JavaScript counts
        entry |= {key: record[key] for key in ("negative", "template") if record.get(key)}
        entry |= {f"column {key}": value for key, value in record.get("columns", {}).items()}
        lines.append(in_script(entry))
    before, after = TEMPLATE.read_text(encoding="utf-8").split("/*DATA*/")
    path = own_file(folder, "index", ".html", PAGE_MARK)
    page = before + ",\n".join(lines) + after
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def in_script(data: Any) -> str:
    """JSON as it may stand inside <script>."""
    text = json.dumps(data, ensure_ascii=False)
    return "".join(_UNSAFE.get(char, char) for char in text)


def contact_sheets(folder: Path, records: Iterable[dict[str, Any]]) -> list[Path]:
    """Write `sheet-001.jpg`, ... for pictures of a manifest; return the paths.

    A row of the sheet is a row of the list: its prompt, then its pictures by seed.
    """
    strips = _strips(records)
    pages: list[Path] = []
    while strip := list(islice(strips, ROWS)):
        path = own_file(folder, f"sheet-{len(pages) + 1:03d}", ".jpg", SHEET_MARK)
        buffer = io.BytesIO()
        _page(folder, strip).save(buffer, format="JPEG", quality=88, comment=SHEET_MARK)
        write_atomically(path, buffer.getvalue())
        pages.append(path)
    return pages


def _strips(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    # One picture a row would make a tall and narrow sheet: those stand side by side.
    for _, group in groupby(records, key=lambda record: record.get("line")):
        pictures = list(islice(group, 10_000))
        while pictures:
            yield pictures[:COLUMNS]
            pictures = pictures[COLUMNS:]


def _page(folder: Path, strips: list[list[dict[str, Any]]]) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    widest = max(len(strip) for strip in strips)
    across = 1 if widest > 1 else 3  # strips side by side
    down = -(-len(strips) // across)
    wide = CAPTION + widest * (CELL + GAP) + GAP
    page = Image.new("RGB", (across * wide + GAP, down * (CELL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, strip in enumerate(strips):
        left, top = GAP + i % across * wide, GAP + i // across * (CELL + GAP)
        seeds = f"seed {strip[0].get('seed')}" + (" ..." if len(strip) > 1 else "")
        lines = [
            *_wrapped(draw, font, str(strip[0].get("template") or strip[0].get("prompt", ""))),
            seeds,
        ]
        draw.multiline_text((left, top), "\n".join(lines), fill="#222", font=font, spacing=3)
        for k, record in enumerate(strip):
            place = (left + CAPTION + k * (CELL + GAP), top)
            page.paste(_thumbnail(folder / record["file"]), place)
    return page


def _wrapped(draw: Any, font: Any, text: str, most: int = 7) -> list[str]:
    lines = [""]
    for word in text.split()[:60]:
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= CAPTION - GAP:
            lines[-1] = longer
        else:
            lines.append(word[:40])
    return lines[:most] if len(lines) <= most else [*lines[: most - 1], "..."]


def _thumbnail(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.thumbnail((CELL, CELL))  # only ever smaller
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        small = Image.new("RGB", (CELL, CELL), "#ddd")
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    return cell
