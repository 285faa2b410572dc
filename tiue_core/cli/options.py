"""Options that mean the same in several commands."""

from typing import Annotated

import typer

Side = Annotated[int | None, typer.Option(show_default="the student's", help="In pixels.")]
Steps = Annotated[int | None, typer.Option(show_default="the student's", help="Decoders (K).")]
Base = Annotated[str | None, typer.Option(help="Folder with what a single-file student lacks.")]
Device = Annotated[str | None, typer.Option(show_default="the best", help="cpu, cuda, mps.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16.")]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Accept the licence of what is downloaded.")
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
