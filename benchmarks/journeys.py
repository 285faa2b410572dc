"""How many rooms a picture walks through: modules entered, changes of module, functions called.

    python benchmarks/journeys.py            # both journeys
    python benchmarks/journeys.py generate   # or row: one row of a CSV, on this machine

Counted are calls of the project's own functions while the command runs, imports left out: the
modules that were entered, the calls that came from another module of the project than the one
they went to, and the functions. Threads count, other processes do not.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tiue_core import cli

PACKAGE = str(Path(cli.__file__).parents[1])
PROMPT = "a cat on a blue background"


class Walk:
    """Follows a run; an instance is what ``sys.setprofile`` is given."""

    def __init__(self) -> None:
        self.modules: Counter[str] = Counter()
        self.functions: set[tuple[str, str]] = set()
        self.changes = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name in ("<module>", "find_spec") or _importing(frame):
            return
        self.modules[code.co_filename] += 1
        self.functions.add((code.co_filename, code.co_qualname))
        caller = _ours(frame.f_back)
        self.changes += caller is not None and caller != code.co_filename

    def result(self) -> dict[str, Any]:
        names = [Path(name).relative_to(PACKAGE).as_posix() for name in sorted(self.modules)]
        return {
            "modules": len(names),
            "changes": self.changes,
            "functions": len(self.functions),
            "entered": names,
        }


def _ours(frame: FrameType | None) -> str | None:
    """The module of the project that called, past whatever libraries stand between."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return frame.f_code.co_filename
        frame = frame.f_back
    return None


def _importing(frame: FrameType | None) -> bool:
    """Whether this happens while a module of the project is being imported."""
    while frame is not None:
        ours = frame.f_code.co_filename.startswith(PACKAGE)
        if ours and frame.f_code.co_name in ("<module>", "exec_module"):
            return True
        frame = frame.f_back
    return False


def walk(arguments: list[str]) -> dict[str, Any]:
    """Run ``tiue`` with these arguments and count."""
    steps = Walk()
    threading.setprofile(steps)
    sys.setprofile(steps)
    try:
        cli.main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return steps.result()


def main(journeys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = folder / "rows.csv"
        rows.write_text(f"prompt,seed\n{PROMPT},3\n", encoding="utf-8")
        known = {
            "generate": ["generate", PROMPT, "--out", str(folder / "one")],
            "row": ["batch", str(rows), "--out", str(folder / "list")],
        }
        for name in journeys or known:
            print(json.dumps({"journey": name, **walk(known[name])}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
