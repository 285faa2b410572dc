"""Run by ComfyUI-Manager after ``requirements.txt``, and by a WebUI's launcher at every start.

It installs nothing and downloads nothing. In ComfyUI it checks versions and makes the model folder;
in a WebUI there is nothing to check, for the extension uses what the WebUI has.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print what is wrong, one line each. 0 if nothing is."""
    webui = _webui()
    if webui is not None:
        return _in_a_webui(webui)
    wrong = []
    if sys.version_info < (3, 10):  # noqa: UP036 - ComfyUI runs on 3.9 as well
        wrong.append(f"Python {sys.version.split()[0]} is too old: TiUE needs 3.10 or newer")
    wrong += [line for line in map(_checked, _requirements()) if line]
    models = _models()
    if models is None:
        wrong.append(
            f"{HERE.parent} is neither ComfyUI's nor a WebUI's folder: put TiUE into ComfyUI's "
            "custom_nodes or the WebUI's extensions"
        )
    for line in wrong:
        print(f"[TiUE] {line}")
    if models is not None:
        folder = models / "tiue"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"[TiUE] {folder} cannot be made ({error.strerror}): make it by hand")
        if not wrong:
            print(f"[TiUE] ready. 'stickers' is built in; other students go to {folder}")
    return 1 if wrong else 0


def _in_a_webui(webui: Path) -> int:
    """A WebUI's pins are its own: a launcher that installed for one extension broke another."""
    if (webui / "backend").is_dir():
        print("[TiUE] ready. Choose tiue/stickers and the sampling method 'TiUE One Pass'")
    else:
        print(
            "[TiUE] needs a WebUI with Forge's backend, and this one has none: put the extension "
            "into Forge, or use TiUE in ComfyUI"
        )
    return 0


def _webui() -> Path | None:
    """Where the WebUI's own code lies: its launcher puts that on the path."""
    places = [HERE.parent.parent, *map(Path, sys.path)]
    found = (place for place in places if (place / "modules" / "launch_utils.py").is_file())
    return next(found, None)


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


def _models() -> Path | None:
    """ComfyUI's models folder; beside custom_nodes, where this folder was put."""
    try:
        import folder_paths  # type: ignore[import-not-found]
    except ImportError:
        return HERE.parent.parent / "models" if HERE.parent.name == "custom_nodes" else None
    return Path(folder_paths.models_dir)


if __name__ == "__main__":
    sys.exit(main())
