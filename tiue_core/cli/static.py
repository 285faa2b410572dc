"""The page without a server: the student's graph beside a page that runs it in the browser."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from .. import __version__
from .console import emit


def write_page(
    folder: Path, student: str, *, webgpu: bool, accept_license: bool, json: bool
) -> None:
    """Export ``student`` and write all that the page needs into ``folder``.

    Raises:
        TiueError: a package or npm is missing, or the folder cannot be written.
    """
    from ..export.site import write_site
    from .export import make

    with TemporaryDirectory() as scratch:
        graph = make(student, Path(scratch) / "student.onnx", accept_license=accept_license)[0]
        site = write_site(graph, folder, webgpu=webgpu, package=None, version=__version__)
    if json:
        size = sum(site["sizes"].values())
        emit({"folder": str(folder), "bytes": size, "student": site["about"]["student"]})
    else:
        print(folder / "index.html")
