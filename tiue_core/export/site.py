"""A folder that paints in a browser: the page of ``web/static``, a graph, and onnxruntime-web.

Any static server will do, and the page asks for nothing outside its folder. onnxruntime-web comes
from npm when the folder is written; nothing of it is part of this repository.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import TiueError
from ..io.files import check_writable, write_atomically

_TIMEOUT = 600  # s
PACKAGE = "onnxruntime-web@~1.30"
GRAPH = "student.onnx"
RUNTIMES = {  # by device: the module that is imported, its WebAssembly, and what loads that
    "wasm": {
        "module": "ort/ort.wasm.min.mjs",
        "glue": "ort/ort-wasm-simd-threaded.mjs",
        "wasm": "ort/ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "module": "ort/ort.jspi.min.mjs",
        "glue": "ort/ort-wasm-simd-threaded.jspi.mjs",
        "wasm": "ort/ort-wasm-simd-threaded.jspi.wasm",
    },
}


def write_site(
    graph: Path, out: Path, *, webgpu: bool = False, package: Path | None = None, version: str = ""
) -> dict[str, Any]:
    """Write the page for a graph; what was there of it is replaced.

    Args:
        graph: an ``.onnx`` of ``tiue export``, float32, weights inside.
        webgpu: put onnxruntime-web's WebGPU build beside the WebAssembly one.
        package: a folder with the npm package onnxruntime-web; by default npm brings it, unless
            ``out`` has it from an earlier time.

    Returns:
        What the page knows: the contents of its ``student.json``.

    Raises:
        TiueError: the graph does not fit on a page, npm is missing, or a folder cannot be written.
    """
    from .runtime import Graph

    painter = Graph(graph, "cpu")
    about, tokenizer = painter.about, json.loads(painter.tokenizer.to_str())
    if graph.with_name(graph.name + ".data").exists():
        raise TiueError(f"{graph} keeps its weights in a second file: too large for a page")
    if tokenizer["model"].get("end_of_word_suffix") != "</w>":
        raise TiueError("the page speaks CLIP's tokenizer only, and this student has another")
    check_writable(out)
    runtimes = {name: files for name, files in RUNTIMES.items() if webgpu or name == "wasm"}
    _bring_runtime([file for files in runtimes.values() for file in files.values()], out, package)
    data = graph.read_bytes()
    if graph.resolve() != (out / GRAPH).resolve():
        write_atomically(out / GRAPH, data)
    for source in sorted(sources().iterdir()):
        write_atomically(out / source.name, source.read_bytes())

    names = [source.name for source in sources().iterdir()]
    names += [GRAPH, *(file for files in runtimes.values() for file in files.values())]
    content = {name: (out / name).read_bytes() for name in sorted(names)}
    digest = hashlib.sha256()
    for name, each in content.items():
        digest.update(name.encode() + hashlib.sha256(each).digest())
    site = {
        "about": about,
        "tokenizer": tokenizer,
        "tiue": version,
        "version": digest.hexdigest()[:16],
        "graph": GRAPH,
        "runtimes": runtimes,
        "webgpu": webgpu,
        # WebGPU's build is for browsers that use it: not kept for offline use where it is not
        "files": [name for name in content if "jspi" not in name] + ["student.json"],
        "large": [name for name in content if name.endswith((".onnx", ".wasm"))],
        "sizes": {name: len(each) for name, each in content.items()},
    }
    write_atomically(out / "student.json", json.dumps(site, ensure_ascii=False).encode())
    return site


def sources() -> Path:
    """Where the page's own files are: in a checkout, or where an installation puts them."""
    installed = Path(sysconfig.get_path("data")) / "share" / "tiue" / "static"
    for folder in (Path(__file__).parents[2] / "web" / "static", installed):
        if (folder / "index.html").is_file():
            return folder
    raise TiueError("the page's files are missing: install tiue again, or run it in a checkout")


def _bring_runtime(names: list[str], out: Path, package: Path | None) -> None:
    """onnxruntime-web's files into ``out / "ort"``."""
    if package is not None:
        for name in names:
            source = package / "dist" / Path(name).name
            if not source.is_file():
                raise TiueError(f"{source} does not exist: give the folder of {PACKAGE}")
            write_atomically(out / name, source.read_bytes())
    elif not all((out / name).is_file() for name in names):
        with TemporaryDirectory() as folder, tarfile.open(_npm(Path(folder))) as archive:
            for name in names:
                member = archive.extractfile(f"package/dist/{Path(name).name}")
                assert member is not None
                write_atomically(out / name, member.read())


def _npm(folder: Path) -> Path:
    """Have npm fetch the package's archive; npm checks its hash, and nothing of it is run."""
    npm = shutil.which("npm")
    if npm is None:
        raise TiueError(
            f"npm is not installed, and the page needs {PACKAGE} from it: install Node.js"
        )
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        why = f"npm did not fetch {PACKAGE} within {_TIMEOUT // 60} minutes"
        raise TiueError(f"{why}: check the connection") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = " ".join(done.stderr.split())[:200] or f"status {done.returncode}"
        raise TiueError(f"npm could not fetch {PACKAGE} ({reason}): check the connection")
    return archives[0]
