"""A run's results onto the disk: tables, pictures, and a page to flip through samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..batch.overview import in_script
from ..io.files import write_atomically
from . import plots, table

TEMPLATE = Path(__file__).parent / "flip.html"


def write_report(result: dict[str, Any], out: Path, beside: bool = False) -> list[Path]:
    """Write table.md, table.csv, table.tex, the plots and index.html; return what was written."""
    texts = {
        "table.md": table.markdown(result, beside) + "\n",
        "table.csv": table.as_csv(result),
        "table.tex": table.latex(result),
        "index.html": flip_page(result),
    }
    for name, text in texts.items():
        write_atomically(out / name, text.encode("utf-8", "replace"))
    written = [out / name for name in texts]
    if plots.quality_against_time(result, out / "quality-time.png"):
        written.append(out / "quality-time.png")
    if plots.diversity_grid(result, out, out / "diversity.png"):
        written.append(out / "diversity.png")
    return written


def flip_page(result: dict[str, Any]) -> str:
    """One HTML file, no server: a prompt at a time, all systems beside each other."""
    names = table.columns(result)
    lines = [["system", *(table.TITLES[name] for name in names)]]
    for label, row in table.cells(result).items():
        spread = {name: f" ± {row[name].spread}" if row[name].spread else "" for name in names}
        lines.append([label, *(row[name].text + spread[name] for name in names)])
    data = {
        "name": result["data"]["name"],
        "prompts": result["data"]["prompts"],
        "seed": result["seed"],
        "systems": [
            {"label": label, "files": row["files"]} for label, row in result["systems"].items()
        ],
        "table": lines,
    }
    return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", in_script(data))
