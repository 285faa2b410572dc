"""Pictures of a run: quality against time, and diversity grids."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..io.files import write_atomically

CELL, GAP, LABEL = 128, 4, 150  # px


def quality_against_time(result: dict[str, Any], path: Path) -> bool:
    """FID over milliseconds, logarithmic; False where there is nothing to draw."""
    points = {
        label: (row["time"]["ms"], row["figures"]["fid"])
        for label, row in result["systems"].items()
        if row.get("time") and "fid" in row["figures"]
    }
    if not points:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for label, (ms, fid) in points.items():
        spread = (
            [[fid["value"] - fid["low"]], [fid["high"] - fid["value"]]] if "low" in fid else None
        )
        axes.errorbar([ms], [fid["value"]], yerr=spread, fmt="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds for one picture (left is better)")
    axes.set_ylabel("FID (lower is better)")
    axes.set_title(result["data"]["about"], fontsize=9)
    axes.margins(x=0.1, y=0.1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    # No date in the file: the same run draws the same bytes.
    figure.savefig(buffer, dpi=120, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
    return True


def diversity_grid(result: dict[str, Any], folder: Path, path: Path) -> bool:
    """A row a system, a block a prompt: the same seeds above each other."""
    from PIL import Image, ImageDraw, ImageFont

    grids = result["diversity"]
    files, prompts, seeds = grids["files"], grids["prompts"], grids["seeds"]
    files = {label: files[label] for label in result["systems"] if label in files}
    if not files or not prompts:
        return False
    head, row = 26, CELL + GAP
    page = Image.new(
        "RGB",
        (LABEL + seeds * row + GAP, len(prompts) * (head + len(files) * row) + GAP),
        "white",
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    top = GAP
    for number, prompt in enumerate(prompts):
        draw.text((GAP, top + 5), prompt[:100], fill="black", font=font)
        top += head
        for label, paths in files.items():
            draw.text((GAP, top + CELL // 2 - 8), label[:20], fill="#333", font=font)
            for seed, file in enumerate(paths[number * seeds : (number + 1) * seeds]):
                with Image.open(folder / file) as image:
                    small = image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
                page.paste(small, (LABEL + seed * row, top))
            top += row
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
    return True
