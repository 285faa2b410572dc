"""The miniature's figures as Markdown, for its card and the README."""

from __future__ import annotations

SHARES = {
    "things_right": "thing",
    "matcher_right": "thing, matcher",
    "background_right": "background",
    "two_things_right": "two things",
    "two_matcher_right": "two things, matcher",
}
PLAIN = ("fit", "edges", "spread", "fid", "precision", "recall", "density", "coverage")


def table(result: dict) -> str:
    """The model card's figures as Markdown; the ceilings first, without what they cannot have."""
    lines = [
        f"Autoencoder: {result['autoencoder_psnr']:.2f} dB. Judge right on rendered scenes: "
        f"{result['judge']['one_thing']:.1%} (one thing), "
        f"{result['judge']['all_scenes']:.1%} (all scenes).",
        "",
        "| " + " | ".join(["system", *SHARES.values(), *PLAIN]).replace("fid", "FID") + " |",
        "| --- " * (1 + len(SHARES) + len(PLAIN)) + "|",
    ]
    for name, row in {**result.get("ceilings", {}), **result["systems"]}.items():
        cells = [name, *(_cell(row, key, ".1%") for key in SHARES)]
        cells += [_cell(row, key, ".2f" if key == "fid" else ".3f") for key in PLAIN]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict, key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""
