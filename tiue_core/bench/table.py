"""The figures for people: a Markdown table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_STAGES = ("text", "encoder", "decoders", "vae")
_COLOURS = ("#b9b9b9", "#4878a8", "#e49444", "#85b6b2", "#9a7fb5")


def table(result: dict[str, Any]) -> str:
    """Milliseconds by stage, peak memory, share of the roofline, then the ratios."""
    sizes = sorted({n for row in result["images_per_second"].values() for n in row})
    head = ["system", *(f"{stage} ms" for stage in _STAGES), "total ms", "range", "memory GB"]
    head += ["roofline", *(f"images/s at {n}" for n in sizes)]
    lines = [
        "{shape}, {size} px, batch {batch}, {device}, {dtype}, {layout}, {threads} threads, "
        "torch {torch}, {rounds} rounds; measured {matmul_gflops:.0f} GFLOP/s, "
        "{copy_gbytes:.1f} GB/s".format(**result),
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    for name, row in result["systems"].items():
        low, high = (1e3 * s for s in row["unet_range"] or row["whole_range"])
        cells = [f"{name} ({row['about']})", *(_ms(row[stage]) for stage in _STAGES)]
        cells += [_ms(row["total"]) + (" *" if row["extrapolated"] else "")]
        cells += [f"{low:.0f} to {high:.0f}", f"{row['memory'] / 1e9:.2f}" if row["memory"] else ""]
        cells += [f"{row['roofline']:.0%}"]
        rates = result["images_per_second"].get(name, {})
        cells += [f"{rates[n]:.2f}" if n in rates else "" for n in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    if any(row["extrapolated"] for row in result["systems"].values()):
        lines += ["", "\\* one of its steps was timed, and multiplied."]
    titles = {
        "ratios": "UNet part over the authors' algorithm, same dtype and layout",
        "ratios_tuned": "and given what all systems get",
        "ratios_as_run": "and as they run it, in float32, contiguous",
    }
    lines.append("")
    for key, title in titles.items():
        if result.get(key):
            used = result["cpu_seconds"][key]
            each = ", ".join(f"{n} {r:.3f} ({used[n]:.3f})" for n, r in result[key].items())
            lines.append(f"{title}: {each}")
    if result["graph_ratios"]:
        used = result["graph_cpu_seconds"]
        each = ", ".join(f"{n} {r:.3f} ({used[n]:.3f})" for n, r in result["graph_ratios"].items())
        lines.append(f"the graph in onnxruntime, whole, over: {each}")
    lines.append("The range is of the UNet part, or of a whole.")
    lines.append("In brackets the same of the process's CPU seconds.")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of seconds per batch, one a system, stacked by stage."""
    try:
        import matplotlib
    except ImportError as error:
        from ..errors import TiueError

        raise TiueError("matplotlib is not installed: pip install 'tiue[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {n: r for n, r in result["systems"].items() if not r["extrapolated"]}
    names = list(rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(names) + 1.6))
    left = [0.0] * len(names)
    whole = {name: row["total"] for name, row in rows.items() if row["text"] is None}
    rows = {name: {"whole": whole.get(name), **row} for name, row in rows.items()}
    stages = (*_STAGES, "whole") if whole else _STAGES
    for stage, colour in zip(stages, _COLOURS, strict=False):
        widths = [rows[name].get(stage) or 0 for name in names]
        axes.barh(names, widths, left=left, color=colour, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, total in enumerate(left):
        axes.text(total, y, f" {total:.3g} s", va="center")
    axes.set_xlim(0, 1.15 * max(left))
    axes.set_xlabel(f"seconds per batch of {result['batch']}")
    axes.set_title(
        "{shape}, {size} px, {device}, {dtype}, {threads} threads".format(**result), fontsize=10
    )
    axes.legend(frameon=False, ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.08))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"
