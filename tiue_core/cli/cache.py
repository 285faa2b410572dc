"""`tiue cache`: the graphs that are kept, so that a picture needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AcceptLicense, Debug, Json


def register(app: typer.Typer) -> None:
    app.command("cache")(cache)


def cache(
    make: Annotated[
        str | None, typer.Option(metavar="STUDENT", help="Make its graphs now, to be kept.")
    ] = None,
    decoders: Annotated[str, typer.Option(help="With --make: exact or fast.")] = "exact",
    steps: Annotated[int | None, typer.Option(help="With --make: decoders (K).")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that is kept.")] = False,
    accept_license: AcceptLicense = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show, make or clear the graphs that other engines than PyTorch paint with.

    Example: tiue cache --make stickers
    """
    from ..optimize import cache as kept
    from .console import emit

    if clear:
        freed = kept.clear()
        return emit({"freed": freed}) if json else print(f"{freed / 1e6:.1f} MB freed")
    if make is not None:
        make_graphs(make, steps, decoders, accept_license)
    rows = [_row(folder, about) for folder, about in kept.kept()]
    if json:
        return emit({"folder": str(kept.home()), "graphs": rows, "engines": kept.remembered()})
    for row in rows:
        steps_said = f"K = {row['decoders_run']}, {row['decoders']}"
        print(f"{row['student']}  {steps_said}  {row['bytes'] / 1e6:.1f} MB  {row['path']}")
    if not rows:
        print(f"no graphs in {kept.home()}")


def make_graphs(
    student: str, steps: int | None, decoders: str, accept_license: bool = False
) -> Path:
    """Find and load a student, and keep its graphs.

    Raises:
        TiueError: no such student, a package is missing, or it cannot be traced.
    """
    from ..core.arguments import DECODERS
    from ..errors import TiueError
    from ..io.messages import first_line, need_torch, quiet_libraries
    from .console import ask_license, one_of, progress

    one_of("--decoders", decoders, DECODERS)
    need_torch()
    from ..export.write import export_set
    from ..optimize import cache as kept
    from ..pipelines.load import load
    from ..students.resolve import find

    source = find(student, accept_license=ask_license(accept_license))
    quiet_libraries()
    with progress("making graphs", None):
        digest = source.content_hash()
        pipe = load(source, device="cpu", dtype="float32")
        named: dict[str, Any] = {"student": source.name, "student_hash": digest, "loras": []}
        named["student_revision"] = source.revision
        options = {"steps": steps, "decoders": decoders}
        try:
            return kept.keep(
                lambda folder: export_set(pipe, folder, record=named, **options),
                f"{digest[:16]}-{steps or 'own'}-{decoders}",
            )
        except (RuntimeError, ValueError) as error:
            why = first_line(error, 200)
            raise TiueError(f"{student} cannot be traced ({why}): PyTorch paints it") from error


def _row(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    from ..optimize.cache import SHIPPED, size

    return {
        "student": about.get("student", "a pipeline's"),
        "student_hash": about.get("student_hash"),
        "decoders": about["decoders"],
        "decoders_run": len(about["timesteps"]),
        "bytes": size(folder),
        "shipped": folder == SHIPPED,
        "path": str(folder),
    }
