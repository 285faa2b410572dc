"""Find a student, as a `Source`: where it lies, and what decides its pictures.

A student is named in one of four ways: a name of the registry, a diffusers folder, a single
`.safetensors` file, or a hub id (`owner/name`, or `owner/name@revision`). Everything that is read
is safetensors or JSON, and is checked before a loader sees it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import PICKLES, content_hash, read_header, refuse_pickle
from . import hub
from .base import find_base, own_parts
from .folder import check_folder, contents
from .low_rank import LOW_RANK
from .registry import ONE_STEP, REGISTRY, STICKERS, TEACHER, AcceptLicense, Student

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """Where a student was found: a diffusers folder or a single file, on this machine."""

    name: str
    path: Path
    revision: str | None = None
    unet: Path | None = None  # a UNet folder that stands in for the one in `path`
    adapter: Path | None = None  # matrices that are added to that UNet's weights
    timesteps: tuple[int, ...] | None = None  # that stand in for the folder's own
    base: Path | None = None  # the folder that completes a single file
    base_name: str | None = None

    def content_hash(self) -> str:
        """SHA-256 over all weights, the scheduler's config, and of the other configs what decides
        the picture: sizes, scaling factors, the student's own timesteps. Of a single file, what
        it lacks is its base's."""
        home, own, files = self.path, [], []
        if home.is_file():
            files, own = [home], own_parts(read_header(home))
            home = self.base or find_base(home)
        found, configs = contents(home, self.unet, own)
        files += [*found, *([self.adapter] if self.adapter else [])]
        hashed = content_hash([*files, home / "scheduler" / "scheduler_config.json"])
        configs["given"] = list(self.timesteps or ())
        text = hashed + json.dumps(configs, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def options(self, dtype: Any = None) -> dict[str, Any]:
        """What `TiuePipeline` is to be given beside the folder."""
        options: dict[str, Any] = {}
        if self.unet is not None:
            from .models import load_unet  # torch

            options["unet"] = load_unet(self.unet, dtype, self.adapter)
        if self.timesteps is not None:
            options["timesteps"] = list(self.timesteps)
        if self.base is not None:
            options["base"] = self.base
        return options


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    accept_license: AcceptLicense = False,
    bar: type | None = None,
    base: str | Path | None = None,
) -> Source:
    """Find a student, downloading it if it is on the hub and not here yet.

    Args:
        name: a registry name, a folder, a `.safetensors` file, or a hub id.
        revision: a hub commit, tag or branch; default: the one pinned by the first download.
        accept_license: needed for a first download only.
        bar: a tqdm class that shows a download's progress; by default the hub's own.
        base: for a single file: the student or folder that has what it lacks; by default one that
            is here (`base.find_base`). Others bring all, and take none.

    Raises:
        TiueError: nothing by that name, or what is there cannot be used.
    """
    text = str(name)
    student = REGISTRY.get(text)
    if text in (TEACHER, ONE_STEP):
        folder, unet = check_folder(STICKERS / "student"), STICKERS / "teacher" / "unet"
        if text == TEACHER:
            return Source(text, folder, unet=unet)
        adapter = STICKERS / "one-step" / LOW_RANK
        read_header(adapter)
        return Source(text, folder, unet=unet, adapter=adapter, timesteps=(999,))
    if student is not None and student.folder is not None:
        return Source(text, check_folder(student.folder))
    if student is not None and student.hub_id:
        return _from_hub(student.hub_id, revision or student.revision, accept_license, student, bar)
    path = Path(text).expanduser()
    if path.is_dir():
        return Source(path.resolve().name, check_folder(path))
    if path.is_file():
        refuse_pickle(path)
        read_header(path)
        return completed(Source(path.stem, path), base)
    if path.suffix.lower() in (".safetensors", *PICKLES) or text.startswith((".", "/", "~")):
        raise TiueError(f"{text} does not exist: check the path")
    if _HUB_ID.fullmatch(text):
        hub_id, _, tag = text.partition("@")
        known = next((s for s in REGISTRY.values() if s.hub_id == hub_id), None)
        revision = revision or tag or (known.revision if known else None)
        return _from_hub(hub_id, revision, accept_license, known, bar)
    close = difflib.get_close_matches(text, REGISTRY, n=3, cutoff=0.4)
    hint = " or ".join(close) if close else "one of " + ", ".join(REGISTRY)
    raise TiueError(f"no student named '{text}': try {hint}, a folder, a file or a hub id")


def completed(source: Source, base: str | Path | None) -> Source:
    """A single file's source with the base that is named, or with one that is here.

    Raises:
        TiueError: no such base.
    """
    if not source.path.is_file():
        return source
    if base is None:
        with suppress(TiueError):  # told when it is loaded
            folder = source.base or find_base(source.path)
            known = [one.name for one in REGISTRY.values() if one.folder == folder]
            return replace(source, base=folder, base_name=known[0] if known else folder.name)
        return source
    found = find(base)
    if found.path.is_file():
        raise TiueError(f"{base} is a file: give a diffusers folder as --base")
    return replace(source, base=found.path, base_name=found.name)


def overview() -> list[dict[str, Any]]:
    """The registry with what is on this machine; asks neither torch nor the network."""
    rows = []
    for student in REGISTRY.values():
        path = student.folder or hub.cached(student.hub_id or "", student.revision)
        try:
            here = path is not None and check_folder(path).is_dir()
        except TiueError:
            here = False
        rows.append(
            {
                "name": student.name,
                "about": student.about,
                "licence": student.licenses,
                "hub_id": student.hub_id,
                "here": here,
                "path": str(path) if here else None,
                "revision": path.name if here and path and student.hub_id else student.revision,
            }
        )
    return rows


def _from_hub(
    hub_id: str,
    revision: str | None,
    accept: AcceptLicense,
    student: Student | None,
    bar: type | None,
) -> Source:
    cached = hub.cached(hub_id, revision)
    if cached is not None:
        try:
            check_folder(cached)
        except TiueError:  # an interrupted download: go on with it
            cached = None
    if cached is None:
        terms = student.terms() if student else None
        cached = hub.download(hub_id, revision, accept, terms, bar)
    elif revision is None and hub_id not in hub.pins():  # another tool downloaded it
        hub.pin(hub_id, cached.name)
    name = student.name if student else hub_id
    return Source(name, check_folder(cached), revision=cached.name)
