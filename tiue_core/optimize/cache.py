"""Graphs that are kept: each set is made once, found again by what decides its pictures.

A set is a folder (``export.write.export_set``) that holds the parts of one student with one K, one
choice of decoders and one autoencoder, for any size. The miniature's is shipped; the others lie in
``home()``, get their name when they are whole, and the least recently used go when there are more
than ``LIMIT``. No torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ..errors import TiueError
from ..export.metadata import SET, read_set
from ..io.files import check_writable, explain, write_atomically

LIMIT = 8  # sets
MEMORY = 3 << 30  # bytes that must be free to make one beside other work
SHIPPED = Path(__file__).parents[1] / "stickers" / "graph"


def home() -> Path:
    """Where graphs are kept: ``TIUE_CACHE``, else the user's own cache."""
    own = os.environ.get("TIUE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tiue"


def kept() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders and descriptions of all sets that are whole, those used last first."""
    folders = [SHIPPED, *(path for path in (home() / "graphs").glob("*") if path.is_dir())]
    for folder in sorted(folders, key=_used, reverse=True):
        with suppress(TiueError):
            yield folder, read_set(folder)[0]


def find(**wanted: Any) -> Path | None:
    """The set whose description has all of these: float32, without LoRAs and draft by default."""
    wanted = {"steps": None, "decoders": "exact", "draft": False, "dtype": "float32"} | wanted
    for folder, about in kept():
        if all(about.get(name) == value for name, value in wanted.items()) and not about["loras"]:
            with suppress(OSError):  # a shipped set may not be ours to touch
                os.utime(folder / f"{SET}.json")
            return folder
    return None


def keep(make: Callable[[Path], Any], name: str) -> Path:
    """Have ``make`` fill a folder, and keep it under ``name`` in place of what was there.

    Raises:
        TiueError: the folder cannot be written, or the disk is full.
    """
    graphs = home() / "graphs"
    check_writable(graphs)
    folder = Path(mkdtemp(dir=graphs, prefix=".tiue-"))
    try:
        make(folder)
        place = graphs / name
        shutil.rmtree(place, ignore_errors=True)
        return folder.replace(place)
    except OSError as error:
        raise explain(error, graphs / name) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _prune(graphs)


def make_later(student: str, name: str, options: Sequence[str] = ()) -> bool:
    """Have a process of its own make graphs, at low priority, once; says whether one was started.

    None is where the exporter is not installed, where an earlier one is at work or has failed (a
    mark says so until the cache is cleared), where memory is short, or with TIUE_BACKGROUND=0.

    Args:
        student: as the command line takes it.
        name: what decides the pictures; options: more for ``tiue cache --make``.
    """
    mark = home() / "tried" / name
    wanted = os.environ.get("TIUE_BACKGROUND") != "0" and find_spec("onnxscript") is not None
    if not wanted or mark.exists() or _free_memory() < MEMORY:
        return False
    with suppress(TiueError, OSError):
        write_atomically(mark, b"")
        nice = shutil.which("nice")
        gently = [nice, "-n", "10"] if nice else []
        command = [*gently, sys.executable, "-m", "tiue_core", "cache", "--make", student, *options]
        quiet = subprocess.DEVNULL
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        return True
    return False


def _free_memory() -> int:
    """Bytes; much where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return MEMORY


def clear() -> int:
    """Remove all that is kept, but not what is shipped; returns the bytes that were freed."""
    freed = size(home())
    for name in ("graphs", "tried", "engines.json"):
        path = home() / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return freed


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remembered() -> dict[str, Any]:
    """What engines measured on this machine; see ``engines``."""
    try:
        found = json.loads((home() / "engines.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(name: str, value: Any) -> None:
    """Add to ``remembered``; where it cannot be written it is measured again another time."""
    known = {**remembered(), name: value}
    with suppress(TiueError):
        write_atomically(home() / "engines.json", json.dumps(known, indent=1).encode())


def _used(folder: Path) -> float:
    try:
        return (folder / f"{SET}.json").stat().st_mtime
    except OSError:
        return 0.0


def _prune(graphs: Path) -> None:
    sets = [path for path in graphs.glob("[!.]*") if path.is_dir()]
    for folder in sorted(sets, key=_used, reverse=True)[LIMIT:]:
        shutil.rmtree(folder, ignore_errors=True)
