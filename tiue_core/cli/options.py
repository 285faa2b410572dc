"""Options that mean the same in several commands."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Side = Annotated[int | None, typer.Option(show_default="the student's", help="In pixels.")]
Steps = Annotated[int | None, typer.Option(show_default="the student's", help="Decoders (K).")]
Base = Annotated[str | None, typer.Option(help="Folder with what a single-file student lacks.")]
Device = Annotated[str | None, typer.Option(show_default="the best", help="cpu, cuda, mps.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16.")]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Accept the licence of a student to download.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
Engine = Annotated[
    str,
    typer.Option(help="torch, onnxruntime, openvino, or auto: the fastest that has a graph here."),
]


def student_names(incomplete: str) -> list[str]:
    """Names for the shell to complete; a path it completes by itself."""
    from ..students.registry import REGISTRY

    return [name for name in REGISTRY if name.startswith(incomplete)]


PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "batch": {
        "The list": (
            *("seed", "count", "decoders", "combinations", "most", "wildcards", "loras"),
            *("read_as", "encoding", "strict"),
        ),
        "What is written": ("out", "names", "image_format", "metadata", "sheet", "index"),
        "The run": (
            *("dry_run", "retry_failed", "batch_size", "engine", "actors", "ray_address"),
            *("device", "dtype"),
        ),
        "The student": ("student", "steps", "base", "accept_license"),
    },
}
"""Options of commands that have many, in groups for their help."""


def arrange(commands: Mapping[str, Any]) -> None:
    """Put options into their groups; those left out stay in the general one."""
    for name, command in commands.items():
        groups = PANELS.get(name, {}).items()
        panels = {option: panel for panel, options in groups for option in options}
        for option in command.params:
            option.show_envvar = False  # one rule for all of them, told once
            if option.name in panels:
                option.rich_help_panel = panels[option.name]
