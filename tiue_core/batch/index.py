"""`index.html`: all pictures of a folder with their prompts, and a search. One file, no server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..io.files import own_file, write_atomically

TEMPLATE = Path(__file__).parent / "page.html"
MARK = b'<meta name="generator" content="tiue">'
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # inside <script>, JSON stays JSON


def html_index(folder: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write `index.html` for pictures of a manifest; return the path."""
    lines = []
    for record in records:
        entry = {key: record.get(key, "") for key in ("file", "prompt", "line")}
        entry["seed"] = str(record.get("seed", ""))  # a seed may be larger than JavaScript counts
        entry |= {key: record[key] for key in ("negative", "template") if record.get(key)}
        entry |= {f"column {key}": value for key, value in record.get("columns", {}).items()}
        text = json.dumps(entry, ensure_ascii=False)
        lines.append("".join(_UNSAFE.get(char, char) for char in text))
    before, after = TEMPLATE.read_text(encoding="utf-8").split("/*DATA*/")
    path = own_file(folder, "index", ".html", MARK)
    page = before + ",\n".join(lines) + after
    write_atomically(path, page.encode("utf-8", "replace"))
    return path
