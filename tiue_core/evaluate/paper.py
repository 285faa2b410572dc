"""Tables S1 and S2 of the paper as transcribed, with what does not add up marked.

`?` is a cell that could not be read in the copy they were transcribed from, `-` one that is empty
there, `unk.` the paper's own.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "paper"
TABLES = {
    "s1": "Table S1: COCO 2014, 30,000 pictures, and COCO 2017, 5,000; RTX 3090, 512 px",
    "s2": "Table S2: diversity; DrawBench and PartiPrompts against SD2.1's own samples",
}
SUSPECT: dict[tuple[str, str, str], str] = {
    ("s1", "SD-Turbo 4", "f1_2014"): "precision 0.633 and recall 0.394 give 0.486",
    ("s1", "SD2.1 cfg=4.5", "f1_2014"): "precision 0.734 and recall 0.526 give 0.613",
    ("s1", "SD2.1 cfg=4.5", "clip_2017"): "0.325 on COCO 2014; no other row falls by so much",
    ("s1", "LCM SD1.5 4", "clip_2014"): "0.303 on COCO 2017; no other row rises by so much",
    ("s2", "SwiftBrushv2", "fid_celeba"): "the same number as SDXL-Lightning's, to the last digit",
    ("s2", "SDXL-Lightning 1", "fid_celeba"): "the same number as SwiftBrush v2's",
}


@cache
def rows(table: str) -> tuple[dict[str, str], ...]:
    """The rows of "s1" or "s2": column -> cell, as printed."""
    with (HERE / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def number(cell: str) -> float | None:
    """The number in a cell, if it is one."""
    try:
        return float(cell)
    except ValueError:
        return None


def cell(table: str, row: str, column: str) -> float | None:
    """One number of the paper; None where there is none."""
    for one in rows(table):
        if one["row"] == row:
            return number(one.get(column, ""))
    return None


def as_json() -> dict[str, Any]:
    """Both tables, and what is suspect."""
    return {
        **{
            table: {"about": about, "rows": [dict(row) for row in rows(table)]}
            for table, about in TABLES.items()
        },
        "suspect": [
            {"table": table, "row": row, "column": column, "why": why}
            for (table, row, column), why in SUSPECT.items()
        ],
    }


def as_markdown() -> str:
    """Both tables for people; suspect cells carry a letter, explained below."""
    lines: list[str] = []
    for table, about in TABLES.items():
        columns = [name for name in rows(table)[0] if name != "base"]
        lines += [f"{about}.", "", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
        notes: list[str] = []
        for row in rows(table):
            cells = []
            for column in columns:
                why = SUSPECT.get((table, row["row"], column))
                letter = f" [{chr(ord('a') + len(notes))}]" if why else ""
                if why:
                    notes.append(f"[{chr(ord('a') + len(notes))}] {row['row']}, {column}: {why}")
                cells.append(row[column] + letter)
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *notes, ""]
    lines.append("`?` could not be read in the copy this was transcribed from; `-` is empty there.")
    return "\n".join(lines)
