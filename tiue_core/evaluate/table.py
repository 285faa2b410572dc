"""A run's results for people: Markdown, CSV and LaTeX, best in bold, second best underlined."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from . import paper

BETTER = {"fid": -1, "ms": -1, "memory": -1}  #: columns where less is more; elsewhere more is
TITLES = {
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "density": "density",
    "coverage": "coverage",
    "thing": "thing",
    "background": "background",
    "clip-b32": "CLIP B/32",
    "clip-g14": "CLIP g-14",
    "ms": "ms",
    "memory": "GB",
}
PAPER = {"fid": "fid", "precision": "precision", "recall": "recall", "f1": "f1"}
PAPER |= {"density": "density", "coverage": "coverage", "clip-g14": "clip", "clip-b32": "clip"}


@dataclass(frozen=True)
class Cell:
    """A number as it is printed, its interval's half width, and its place in the column."""

    text: str
    spread: str = ""
    place: int = 0  # 1, the best; 2, the second; 0, neither
    value: float | None = None
    low: float | None = None
    high: float | None = None


def columns(result: dict[str, Any]) -> list[str]:
    """Those that any system has a number for."""
    found = {name for row in result["systems"].values() for name in row["figures"]}
    if any(row.get("time") for row in result["systems"].values()):
        found |= {"ms"}
        if any((row.get("time") or {}).get("memory") for row in result["systems"].values()):
            found |= {"memory"}
    return [name for name in TITLES if name in found]


def cells(result: dict[str, Any]) -> dict[str, dict[str, Cell]]:
    """Label -> column -> cell. The reference's own row takes no part in the places."""
    table: dict[str, dict[str, Cell]] = {label: {} for label in result["systems"]}
    for name in columns(result):
        values = {label: _figure(row, name) for label, row in result["systems"].items()}
        shown = {
            label: float(_print(name, figure["value"]))
            for label, figure in values.items()
            if figure and not result["systems"][label].get("is_reference")
        }
        ranking = sorted(set(shown.values()), reverse=BETTER.get(name, 1) > 0)
        for label, figure in values.items():
            if figure is None:
                table[label][name] = Cell("-")
                continue
            place = ranking.index(shown[label]) + 1 if label in shown else 0
            spread = ""
            if "low" in figure:
                spread = _print(name, (figure["high"] - figure["low"]) / 2)
            table[label][name] = Cell(
                _print(name, figure["value"]),
                spread,
                place if place in (1, 2) and len(shown) > 1 else 0,
                figure["value"],
                figure.get("low"),
                figure.get("high"),
            )
    return table


def _figure(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    if name in ("ms", "memory"):
        time = row.get("time")
        if not time or time.get(name) is None:
            return None
        return {"value": time[name] / (1 if name == "ms" else 1e9)}
    return row["figures"].get(name)


def _print(name: str, value: float) -> str:
    digits = {"fid": 2, "memory": 2, "ms": 1}.get(name, 3)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def from_paper(result: dict[str, Any], label: str, name: str) -> float | None:
    """The paper's number of the same row, data set and metric."""
    row, data = result["systems"][label].get("paper"), result["data"].get("paper")
    if not row or not data or name not in PAPER:
        return None
    table = "s1" if data in ("2014", "2017") else "s2"
    return paper.cell(table, row, f"{PAPER[name]}_{data}")


def markdown(result: dict[str, Any], beside: bool = False) -> str:
    """The table with what must be known to read it; ``beside`` adds the paper's numbers."""
    names = columns(result)
    heads = [f"{TITLES[name]} {'↓' if BETTER.get(name, 1) < 0 else '↑'}" for name in names]
    lines = [
        *_caption(result),
        "",
        "| system | steps | " + " | ".join(heads) + " |",
        "| --- | --- " + "| ---: " * len(names) + "|",
    ]
    for label, row in cells(result).items():
        shown = []
        for name in names:
            cell = row[name]
            text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.place, cell.text)
            text += f" ± {cell.spread}" if cell.spread else ""
            theirs = from_paper(result, label, name) if beside else None
            shown.append(text + (f" ({theirs:g})" if theirs is not None else ""))
        title = label + (" (reference)" if result["systems"][label].get("is_reference") else "")
        steps = str(result["systems"][label]["steps"])
        lines.append("| " + " | ".join([title, steps, *shown]) + " |")
    return "\n".join([*lines, "", *_notes(result, beside)])


def _caption(result: dict[str, Any]) -> list[str]:
    data, count = result["data"], len(result["data"]["prompts"])
    line = f"{data['about']}."
    if data["whole"] and count < data["whole"]:
        line += f" Only {count} of its {data['whole']} prompts: not to be put beside the paper."
    return [line]


def _notes(result: dict[str, Any], beside: bool) -> list[str]:
    lines = []
    if result["features"]:
        lines.append(
            f"Features: {result['features']}; k = {result['nearest']}, strict <, whole sets."
        )
    for about in result["clips"].values():
        lines.append(f"CLIPScore: {about}, mean cosine.")
    if result["halves"]:
        lines.append(f"± 95 %, from {result['halves']} random halves of both sets.")
    times = [row["time"] for row in result["systems"].values() if row.get("time")]
    if times:
        one = times[0]
        lines.append(
            f"Time and memory: one picture, warm, text encoder and image decoder included, "
            f"{one['device']}, {one['dtype']}, {one['threads']} threads (parts: table.csv); "
            "measured once and kept. "
            "All other columns are the same again, also after a run that was killed."
        )
    if beside:
        lines.append(
            "In brackets the paper's own number; which CLIP it used it does not say. Time and "
            "memory are those of its RTX 3090 and are not put beside these."
        )
    return lines


def as_csv(result: dict[str, Any]) -> str:
    """Full precision, a column each for the interval's ends and for the paper's number."""
    names = columns(result)
    head = ["system", "row", "steps", "guidance", "pictures", "pixels"]
    for name in names:
        head += [name, f"{name}_low", f"{name}_high", f"{name}_paper"]
    head += ["text_ms", "unet_ms", "vae_ms", "licence", "digest"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for label, row in cells(result).items():
        entry = result["systems"][label]
        line: list[Any] = [label, entry["system"], entry["steps"], entry["guidance"]]
        line += [entry["pictures"], entry["side"]]
        for name in names:
            cell = row[name]
            numbers = (cell.value, cell.low, cell.high, from_paper(result, label, name))
            line += ["" if one is None else repr(one) for one in numbers]
        time = entry.get("time") or {}
        line += [time.get(part, "") for part in ("text", "unet", "vae")]
        writer.writerow([*line, entry["licence"], entry["digest"]])
    return buffer.getvalue()


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


def latex(result: dict[str, Any]) -> str:
    """A tabular as in the paper, to be \\input."""
    names = columns(result)
    arrows = {1: r"$\uparrow$", -1: r"$\downarrow$"}
    heads = [TITLES[name] + arrows[BETTER.get(name, 1)] for name in names]
    lines = [
        "% " + " ".join(_caption(result)),
        rf"\begin{{tabular}}{{lr{'r' * len(names)}}}",
        r"\hline",
        " & ".join(["System", "Steps", *heads]) + r" \\",
        r"\hline",
    ]
    for label, row in cells(result).items():
        shown = []
        for name in names:
            cell = row[name]
            wrap = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(cell.place, "%s")
            spread = rf"\,\tiny$\pm${cell.spread}" if cell.spread else ""
            shown.append("{" + wrap % cell.text + spread + "}" if spread else wrap % cell.text)
        title = "".join(_TEX.get(char, char) for char in label)
        steps = str(result["systems"][label]["steps"])
        lines.append(" & ".join([title, steps, *shown]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])
