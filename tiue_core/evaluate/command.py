"""``tiue evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def evaluate(
        students: Annotated[
            list[str] | None,
            typer.Argument(help="Students: `stickers`, or NAME=FOLDER for one of your own."),
        ] = None,
        teacher: Annotated[str, typer.Option(help="The teacher; `none` leaves it out.")] = (
            "stickers-teacher"
        ),
        count: Annotated[int, typer.Option(min=16, help="Fresh prompts, and scenes.")] = 1024,
        sheet: Annotated[
            Path | None, typer.Option(help="Write a contact sheet of the first student here.")
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
        json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Measure students of the stickers world side by side with their teacher.

        Example: tiue evaluate stickers --count 256
        """
        import json
        from importlib.util import find_spec

        from ..errors import TiueError

        missing = [name for name in ("torchmetrics", "prdc", "scipy") if find_spec(name) is None]
        if missing:
            raise TiueError(f"{', '.join(missing)} is not installed: pip install 'tiue[evaluate]'")

        from ..pipeline import TiuePipeline
        from ..stickers.judge import Judge
        from .stickers import contact_sheet, report

        pipelines = {}
        for student in students or ["stickers"]:
            name, _, source = student.partition("=")
            pipelines[name] = TiuePipeline.from_pretrained(source or name)
        judge = Judge.load()
        first = next(iter(pipelines.values()))
        for pipeline in pipelines.values():  # students are compared, not the decoders they bring
            pipeline.vae = first.vae
        result = report(
            pipelines,
            None if teacher == "none" else TiuePipeline.from_pretrained(teacher),
            judge,
            count=count,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if sheet:
            contact_sheet(first, judge, sheet)
        print(json.dumps(result) if json_output else table(result))


def table(result: dict) -> str:
    """The figures as Markdown, for people and model cards."""
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
