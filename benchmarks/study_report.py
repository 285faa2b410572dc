"""The study's figures as JSON, a table and pictures; and a check of new figures against them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("fid", "fidelity", "two_things", "precision", "recall", "f1", "density", "coverage")

Paint = Callable[[str, list[str], list[int]], Any]  #: a row's pictures of prompts and seeds


def gathered(rows: Any, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Row -> column -> one value a seed, of what is measured."""
    found = {}
    for row in rows:
        files = sorted(folder.glob(f"{row}-[0-9]*.json"))
        measured = [json.loads(file.read_text()) for file in files]
        if measured:
            found[row] = {name: [m[name] for m in measured] for name in (*COLUMNS, "trained_s")}
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % confidence interval (Student's t); NaN for one value."""
    if len(values) < 2:
        return values[0], float("nan")
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * error)


def report(study: dict, out: Path, script: str, paint: Paint) -> None:
    """Write docs/study.json, the table in docs/study.md and the figures in docs/study."""
    values = gathered(study["rows"], out / "measured")
    large = gathered(study["rows"], out / "measured-large")
    costs_file = out / "costs.json"
    costs = json.loads(costs_file.read_text()) if costs_file.is_file() else {}
    alike = {row: _shape(study["rows"][row]) for row in values}
    for row in values:  # each shape in a process of its own, so that memory is its own
        if alike[row] not in costs:
            command = [sys.executable, script, "--out", str(out), "--cost", row]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            costs[alike[row]] = json.loads(made.stdout)
            costs_file.write_text(json.dumps(costs, indent=1))
    features = out / "features.json"
    result = {
        "settings": {key: study[key] for key in ("count", "large", "base")},
        "rows": {
            row: {**_summary(study["rows"][row], columns), **costs[alike[row]]}
            for row, columns in values.items()
        },
        "large": {row: _summary(study["rows"][row], columns) for row, columns in large.items()},
    }
    (DOCS / "study.json").write_text(json.dumps(result, indent=1) + "\n")
    page = DOCS / "study.md"
    text = page.read_text(encoding="utf-8")
    for name, rows in (("table", result["rows"]), ("large", result["large"])):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, after = text.split(start)[0], text.split(end)[1]
        text = f"{before}{start}\n{table(rows)}\n{end}{after}"
    page.write_text(text, encoding="utf-8")
    figures(result, json.loads(features.read_text()) if features.is_file() else None, out, paint)


def _summary(row: dict, columns: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "title": row["title"],
        "seeds": len(columns["fid"]),
        "values": columns,
        "interval": {name: interval(columns[name]) for name in COLUMNS},
    }


def _shape(row: dict) -> str:
    """What time and memory depend on."""
    if "teacher_steps" in row:
        return f"teacher {row['teacher_steps']}"
    changes = row.get("changes", {})
    kind = "shared" if changes.get("shared_encoder", True) else "unshared"
    return f"{kind} {changes.get('decoders', 4)}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    costs = all("seconds" in row for row in rows.values())
    names = ["row", "seeds", *COLUMNS, *(("s", "MB") if costs else ())]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for row in rows.values():
        cells = [row["title"], str(row["seeds"])]
        for name in COLUMNS:
            mean, half = row["interval"][name]
            digits = 1 if name == "fid" else 3
            cells.append(f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else ""))
        if costs:
            cells += [f"{row['seconds']:.2f}", f"{row['memory_mb']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check(out: Path) -> str | None:
    """None if every measured row lies within the interval that the docs give for it."""
    known, wrong = json.loads((DOCS / "study.json").read_text()), []
    for part, folder in (("rows", "measured"), ("large", "measured-large")):
        for row, columns in gathered(known[part], out / folder).items():
            for name in ("fid", "coverage"):
                mean, half = known[part][row]["interval"][name]
                if half != half:
                    continue
                again = interval(columns[name])[0]
                inside = abs(again - mean) <= half or again in known[part][row]["values"][name]
                print(f"{row} {name} ({part}): {again:.3f}, known {mean:.3f} ± {half:.3f}")
                wrong += [] if inside else [f"{row} {name} ({part})"]
    return f"outside: {', '.join(wrong)}" if wrong else None


def figures(result: dict, features: dict | None, out: Path, paint: Paint) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image, ImageDraw

    folder = DOCS / "study"
    folder.mkdir(exist_ok=True)
    rows = result["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.36 * len(rows) + 1), sharey=True)
    for axis, name in zip(axes, ("fid", "coverage"), strict=True):
        for place, row in enumerate(rows.values()):
            mean, half = row["interval"][name]
            axis.errorbar(mean, place, xerr=0 if half != half else half, fmt="o", color="tab:blue")
            axis.plot(row["values"][name], [place] * row["seeds"], "|", color="gray")
        axis.set_xlabel(f"{name}: mean, 95 % interval, seeds")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [row["title"] for row in rows.values()])
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(folder / "rows.png", dpi=90)
    plt.close(figure)

    if features:
        figure, axes = plt.subplots(1, 3, figsize=(12, 4))
        times = features["timesteps"]
        for axis, name in zip(axes, ("encoder", "skips", "decoder"), strict=True):
            similar = np.array(features[name])
            edges = (times[0], times[-1], times[-1], times[0])
            drawn = axis.imshow(similar, vmin=0, vmax=1, extent=edges)
            near = float(np.diag(similar, 1).mean())
            axis.set_title(f"{name}\nneighbours {near:.3f}, ends {similar[0, -1]:.2f}", fontsize=10)
            axis.set_xlabel("t")
        figure.colorbar(drawn, ax=axes, label="cosine")
        figure.savefig(folder / "features.png", dpi=90)
        plt.close(figure)

    samples = sorted((out / "k4-0" / "samples").glob("*.png"))
    if samples:
        strips = [(int(file.stem), Image.open(file).crop((0, 0, 1024, 256))) for file in samples]
        sheet = Image.new("RGB", (1024 + 60, 260 * len(strips)), "white")
        draw = ImageDraw.Draw(sheet)
        for index, (step, strip) in enumerate(strips):
            sheet.paste(strip, (60, 260 * index))
            draw.text((8, 260 * index + 120), str(step), fill="black", font_size=20)
        sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3)).save(folder / "updates.png")
    diversity(rows, paint, folder / "diversity.png")


def diversity(rows: dict, paint: Paint, file: Path) -> None:
    """One prompt, eight noises, a line for each system."""
    from PIL import Image, ImageDraw

    from tiue_core.train.grids import grid

    shown = [
        row
        for row in ("teacher-15", "unshared", "better", "k4", "k1", "images", "plain-low")
        if row in rows
    ]
    sheet = Image.new("RGB", (1024 + 180, 128 * len(shown)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(shown):
        images = paint(row, ["a flower on a blue background"] * 8, list(range(8)))
        sheet.paste(grid(images, columns=8), (180, 128 * index))
        draw.text((8, 128 * index + 54), row, fill="black", font_size=20)
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3)).save(file)
