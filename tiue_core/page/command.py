"""``tiue app``: the page, here as a folder of static files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from .. import console


def register(app: typer.Typer) -> None:
    app.command("app")(page)


def page(
    static: Annotated[
        Path, typer.Option(metavar="DIR", help="Write a page that paints in the browser itself.")
    ],
    student: Annotated[str, typer.Option(help="Exported for the page.")] = "stickers",
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="A graph made before, instead.")
    ] = None,
    decoders: Annotated[str, typer.Option(metavar="exact|fast")] = "exact",
    webgpu: Annotated[
        bool, typer.Option("--webgpu", help="Add onnxruntime-web's WebGPU build, 17 MB.")
    ] = False,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option("--onnxruntime-web", metavar="DIR", help="The npm package, unpacked."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
) -> None:
    """Write a static page: any web server can show it, and it works offline after one visit.

    Example: tiue app --static site && python3 -m http.server -d site
    """
    from ..cli import _VERSION
    from ..export.command import make
    from ..export.site import write_site

    options = {"webgpu": webgpu, "package": onnxruntime_web, "version": _VERSION}
    if graph is not None:
        site = write_site(graph, static, **options)
    else:
        with TemporaryDirectory() as folder:
            made = Path(folder) / "student.onnx"
            make(student, made, decoders=decoders)
            site = write_site(made, static, **options)
    size = sum(site["sizes"].values())
    if json:
        console.emit({"folder": str(static), "bytes": size, "student": site["about"]["student"]})
    else:
        print(static / "index.html")
