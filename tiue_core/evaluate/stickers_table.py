"""The miniature's figures as Markdown, for its card and the README."""

from __future__ import annotations


def table(result: dict) -> str:
    """The model card's figures as Markdown."""
    lines = [
        f"Autoencoder: {result['autoencoder_psnr']:.2f} dB. Judge right on rendered scenes: "
        f"{result['judge']['one_thing']:.1%} (one thing), "
        f"{result['judge']['all_scenes']:.1%} (all scenes).",
        "",
        "| system | thing | background | two things | FID | precision | recall | density | "
        "coverage |",
        "| --- " * 9 + "|",
    ]
    for name, row in result["systems"].items():
        shares = (row["things_right"], row["background_right"], row["two_things_right"])
        cells = [name, *(f"{share:.1%}" for share in shares), f"{row['fid']:.2f}"]
        cells += [f"{row[key]:.3f}" for key in ("precision", "recall", "density", "coverage")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
