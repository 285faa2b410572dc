"""Students on this machine, as a list for a combo and back to a path.

Built in; diffusers folders and checkpoints in ComfyUI's model folders (``diffusers``, ``tiue``,
``checkpoints``, also those of ``extra_model_paths.yaml``); released ones by name.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import folder_paths

from ..tiue_core.students.registry import REGISTRY, STICKERS, TEACHER

KIND = "tiue"
_FOLDERS = (KIND, "diffusers")  # where diffusers folders are looked for
_FILES = (KIND, "checkpoints")  # where single files are looked for
_PARTS = ("diffusion_models", "text_encoders", "vae")  # where ModelSave, CLIPSave, VAESave write


def register() -> None:
    """Tell ComfyUI of models/tiue and output/tiue. A path given in extra_model_paths.yaml stays."""
    for root in (folder_paths.models_dir, folder_paths.get_output_directory()):  # where we save
        own = os.path.join(root, KIND)  # noqa: PTH118 - ComfyUI keeps strings
        folder_paths.add_model_folder_path(KIND, own)
    paths, extensions = folder_paths.folder_names_and_paths[KIND]
    folder_paths.folder_names_and_paths[KIND] = (paths, {*extensions, ".safetensors"})


def choices() -> list[str]:
    """All students that can be chosen, the built-in one first."""
    teacher = [TEACHER] if STICKERS.joinpath("teacher", "unet").is_dir() else []
    return list(dict.fromkeys([*REGISTRY, *teacher, *_on_disk()]))


def on_disk(choice: str) -> Path | None:
    """The folder or file that a choice stands for; None: a name that `students` knows.

    Raises:
        ValueError: it was there when the list was made, and is not any more.
    """
    if choice in REGISTRY or choice == TEACHER:
        return None
    path = _on_disk().get(choice)
    if path is None:
        raise ValueError(
            f"The student '{choice}' is gone from ComfyUI's model folders: put it back, or press R "
            "to refresh the list and choose another"
        )
    return path


def gone(*choices: str) -> str | None:
    """Why one of these cannot be loaded: it was there, and is not any more."""
    try:
        for choice in choices:
            on_disk(choice)
    except ValueError as error:
        return str(error)
    return None


def built_in(choice: str) -> Path | None:
    """Where the files of a choice lie that came with this pack."""
    return REGISTRY["stickers" if choice == TEACHER else choice].folder


def _on_disk() -> dict[str, Path]:
    """Choice to path: 'tiue/my-student', 'checkpoints/mine.safetensors'."""
    found: dict[str, Path] = {}
    for kind in _FOLDERS:
        for root in folder_paths.get_folder_paths(kind):
            for folder in _students_below(Path(root)):
                found.setdefault(_name(kind, folder.relative_to(root)), folder)
    for kind in _FILES:
        for name in folder_paths.get_filename_list(kind):
            path = Path(folder_paths.get_full_path(kind, name) or "")
            if path.suffix == ".safetensors" and not _inside_student(path, Path(name)):
                found.setdefault(_name(kind, Path(name)), path)
    for kind in _PARTS:
        for name in folder_paths.get_filename_list(kind):
            path = Path(folder_paths.get_full_path(kind, name) or "")
            if path.suffix == ".safetensors" and of_student(path):
                found.setdefault(_name(kind, Path(name)), path)
    return found


def of_student(path: Path) -> bool:
    """Whether a file was saved from a student: its header names this pack."""
    return _names_us(path, path.stat().st_mtime_ns)


@functools.cache
def _names_us(path: Path, _stamp: int) -> bool:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(size) if size < 2**27 else b""
    except OSError:
        return False
    return b"TiUE" in head or b"tiue." in head


def _students_below(root: Path) -> list[Path]:
    """Folders with a ``model_index.json``, and nothing below those."""
    students = []
    for folder, inside, files in os.walk(root, followlinks=True):
        if "model_index.json" in files:
            students.append(Path(folder))
            inside.clear()
        inside.sort()
    return students


def _inside_student(path: Path, name: Path) -> bool:
    """Whether a file is a part of a diffusers folder."""
    return any((path.parents[i] / "model_index.json").is_file() for i in range(len(name.parts)))


def _name(kind: str, path: Path) -> str:
    return kind if path == Path() else f"{kind}/{path.as_posix()}"
