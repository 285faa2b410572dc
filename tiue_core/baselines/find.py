"""A system's files, found on this machine or downloaded once its licence is accepted.

sd-turbo                            a row of the registry, from the hub
tcd-4:sd21-base+tcd.safetensors     the same row from these files, in the order of its parts
gigagan:FOLDER                      pictures that are there already
my-name=sd-turbo                    under another name in the table
my-name=FOLDER                      a TiUE student: a name, a folder, a file, a hub id
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import content_hash, read_header
from ..students import hub
from ..students import resolve as students
from ..students.folder import MODELS, check_folder, weights
from .registry import REGISTRY
from .system import Part, System

_XL = ("text_encoder_2", "tokenizer_2")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Found:
    """A system and where its files are."""

    label: str
    system: System
    paths: tuple[Path, ...]  # one a part; of a pipeline its folder
    source: students.Source | None = None  # a pipeline that is a student, or has its UNet elsewhere
    revisions: tuple[str, ...] = ()

    @property
    def revision(self) -> str | None:
        """The hub commits that its files are of, in one text."""
        return ", ".join(self.revisions) or (self.source.revision if self.source else None)

    def digest(self) -> str:
        """SHA-256 over weights and recipe: what decides the pictures."""
        if self.system.sampler == "images":
            return content_hash(pictures(self.paths[0]))
        if self.system.sampler == "one-way":
            assert self.source is not None
            return self.source.content_hash()
        files: list[Path] = []
        for part, path in zip(self.system.parts, self.paths, strict=True):
            files += _files(part, path, self.system, self.source)
        system = self.system
        recipe = [system.sampler, system.timesteps, system.guidance, system.embedded]
        text = json.dumps([content_hash(files), *recipe, system.eta, system.prediction])
        return hashlib.sha256(text.encode()).hexdigest()


def parse(text: str) -> tuple[str, System, list[str]]:
    """``[LABEL=]SYSTEM[:FILE[+FILE]]`` or ``[LABEL=]STUDENT``: label, system, files given.

    Raises:
        TiueError: there is nothing of that kind.
    """
    label, equals, rest = text.partition("=")
    if not equals or "/" in label:
        label, rest = "", text
    name, colon, given = rest.partition(":")
    if name in REGISTRY:
        system = REGISTRY[name]
        sources = [one for one in given.split("+") if one]
        if colon and not sources:
            raise TiueError(f"{text} names no file after the colon: leave the colon out, or add it")
        return label or name, system, sources
    if not rest:
        raise TiueError(f"{text!r} names no system: give one of `tiue evaluate --list-systems`")
    return label or Path(rest).name, _of_student(rest), []


def _of_student(name: str) -> System:
    close = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.5)
    path = Path(name).expanduser()
    if name not in students.REGISTRY and not path.exists() and "/" not in name and not path.suffix:
        hint = " or ".join(close) if close else "one of `tiue evaluate --list-systems`"
        raise TiueError(f"no system named '{name}': try {hint}, or a student's folder or hub id")
    return System(name, "a TiUE student", "one-way", student=name, prediction="epsilon x K")


def find(text: str, accept_license: students.AcceptLicense = False) -> Found:
    """Find what ``text`` names (see `parse`), downloading what is not here.

    Raises:
        TiueError: no such system, a file is missing or not what it should be, the licence is not
            accepted, or the hub cannot be reached.
    """
    label, system, given = parse(text)
    if not label.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise TiueError(f"'{label}' cannot be a name in a table: use letters, digits, . - _")
    if system.student:
        return _student(label, system, given, accept_license)
    parts = system.parts
    if given and len(given) != len(parts):
        kinds = " + ".join(part.kind for part in parts)
        raise TiueError(
            f"{system.name} is made of {kinds}: give {system.name}:"
            + "+".join(["FILE"] * len(parts))
        )
    if not given and not all(part.hub_id for part in parts):
        raise TiueError(f"{system.name} cannot be downloaded: {system.note}")
    paths, source, revisions = [], None, []
    for number, part in enumerate(parts):
        if given:
            path, found = _here(system, part, given[number])
            source = source or found
        else:
            path = _hub(system, part, accept_license)
            revisions.append(f"{part.hub_id}@{_revision(path, part)}")
        paths.append(path)
    return Found(label, system, tuple(paths), source, tuple(revisions))


def _student(label: str, system: System, given: list[str], accept: Any) -> Found:
    if len(given) > 1:
        raise TiueError(f"{system.name} is made of one folder: give {system.name}:FOLDER")
    name = given[0] if given else system.student
    source = students.find(name, accept_license=accept)
    if system.sampler != "one-way" and source.path.is_file():
        raise TiueError(f"{system.name} is read from a diffusers folder: {name} is a file")
    system = system if not given else replace(system, student=name)
    return Found(label, system, (source.path,), source)


# --- files given ---------------------------------------------------------------------------


def _here(system: System, part: Part, text: str) -> tuple[Path, students.Source | None]:
    path = Path(text).expanduser()
    if part.kind == "images":
        pictures(path)
        return path, None
    if part.kind in ("pipeline", "base"):
        if text == students.TEACHER or text in students.REGISTRY:
            source = students.find(text)
            return source.path, source
        if path.is_file():
            raise TiueError(f"{system.name} is read from a diffusers folder: {text} is a file")
        return check_folder(path, _models(system, part)), None
    if path.is_dir() and part.kind == "unet":
        _unet_folder(path)
        return path, None
    read_header(path)
    return path, None


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; "2" comes before "10".

    Raises:
        TiueError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise TiueError(f"{folder} is not a folder: give the one that holds the pictures")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES]
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise TiueError(f"{folder} holds no pictures ({', '.join(_SUFFIXES)}): check the path")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[Any]:
    import re

    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(one), "") if one.isdecimal() else (0, 0, one) for one in parts]


def _models(system: System, part: Part) -> tuple[str, ...]:
    """Those of a pipeline folder whose weights are read."""
    models = tuple(name for name in MODELS if part.kind == "pipeline" or name != "unet")
    return (*models, "text_encoder_2") if system.xl else models


def _unet_folder(folder: Path) -> list[Path]:
    if not (folder / "config.json").is_file():
        raise TiueError(f"{folder} has no config.json: give the folder of a diffusers UNet")
    files = weights(folder)
    for file in files:
        read_header(file)
    return files


def _files(part: Part, path: Path, system: System, source: students.Source | None) -> list[Path]:
    """The weights of a part."""
    if path.is_file():
        return [path]
    if part.kind == "unet":
        return _unet_folder(path)
    homes = dict.fromkeys(_models(system, part), path)
    if source is not None and source.unet is not None:
        homes["unet"] = source.unet.parent
    return [file for name, home in homes.items() for file in weights(home / name)]


# --- the hub -------------------------------------------------------------------------------


def _hub(system: System, part: Part, accept: students.AcceptLicense) -> Path:
    pinned = part.revision
    folder = hub.cached(part.hub_id, pinned, part.probe)
    try:
        if folder is not None:
            if pinned is None and part.hub_id not in hub.pins():  # another tool downloaded it
                hub.pin(part.hub_id, folder.name)
            return _checked(system, part, folder)
    except TiueError:
        pass  # an interrupted download: go on with it

    def needed(hub_id: str, files: list[str]) -> list[str]:
        return _needed(system, part, hub_id, files)

    folder = hub.download(part.hub_id, pinned, accept, part.terms(), needed=needed)
    return _checked(system, part, folder)


def _checked(system: System, part: Part, folder: Path) -> Path:
    if part.file:
        read_header(folder / part.file)
        return folder / part.file
    if part.kind == "unet":
        _unet_folder(folder)
        return folder
    return check_folder(folder, _models(system, part))


def _needed(system: System, part: Part, hub_id: str, files: list[str]) -> list[str]:
    """The files of a repository that a part is read from."""
    if part.file:
        if part.file not in files:
            raise TiueError(f"{hub_id} has no {part.file}: give {system.name} its files yourself")
        return [part.file]
    if part.kind == "unet":
        found = [file for file in files if file.endswith(".safetensors") and "/" not in file]
        plain = [file for file in found if ".fp16" not in file]
        return ["config.json", *(plain or found)]
    folders = (*hub.FOLDERS, *(_XL if system.xl else ()))
    wanted = hub.needed_of_student(hub_id, files, folders)
    if part.kind == "base":  # another part brings the UNet
        heavy = [file for file in wanted if file.startswith("unet/") and ".safetensors" in file]
        wanted = [file for file in wanted if file not in heavy]
    return wanted


def _revision(path: Path, part: Part) -> str:
    """The commit that a snapshot is of."""
    parts: Sequence[str] = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else part.revision or ""


def here(system: System) -> bool:
    """Whether a system's files are on this machine; asks no network."""
    if system.sampler == "images":
        return False
    if system.student:
        try:
            source = system.student
            if source in students.REGISTRY and students.REGISTRY[source].hub_id:
                entry = students.REGISTRY[source]
                return hub.cached(entry.hub_id or "", entry.revision) is not None
            students.find(source)
            return True
        except TiueError:
            return False
    for part in system.parts:
        if not part.hub_id or hub.cached(part.hub_id, part.revision, part.probe) is None:
            return False
    return True


def overview() -> list[dict[str, Any]]:
    """Every system as JSON, with whether it is here."""
    return [{**system.record(), "here": here(system)} for system in REGISTRY.values()]
