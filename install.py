"""Run by ComfyUI-Manager after ``requirements.txt``: checks versions, makes the model folder.

It installs nothing and downloads nothing.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print what is wrong, one line each. 0 if nothing is."""
    wrong = []
    if sys.version_info < (3, 10):  # noqa: UP036 - ComfyUI runs on 3.9 as well
        wrong.append(f"Python {sys.version.split()[0]} is too old: TiUE needs 3.10 or newer")
    wrong += [line for line in map(_checked, _requirements()) if line]
    for line in wrong:
        print(f"[TiUE] {line}")
    folder = _models() / "tiue"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"[TiUE] {folder} cannot be made ({error.strerror}): make it by hand for students")
    if not wrong:
        print(f"[TiUE] ready. 'stickers' is built in; other students go to {folder}")
    return 1 if wrong else 0


def _requirements() -> list[str]:
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def _checked(requirement: str) -> str:
    """What is wrong with an installed package; nothing: an empty line."""
    name, _, wanted = requirement.partition(">=")
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing: pip install '{requirement}' in ComfyUI's Python"
    if wanted and _numbers(found) < _numbers(wanted):
        return f"{name} {found} is too old: pip install '{requirement}' in ComfyUI's Python"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    """'0.36.1+cpu' as (0, 36, 1)."""
    release = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, release.group().split("."))) if release else ()


def _models() -> Path:
    """ComfyUI's models folder; beside custom_nodes, where this folder was put."""
    try:
        import folder_paths  # type: ignore[import-not-found]
    except ImportError:
        return HERE.parent.parent / "models"
    return Path(folder_paths.models_dir)


if __name__ == "__main__":
    sys.exit(main())
