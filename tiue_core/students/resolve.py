"""Find and load a student.

A student is named in one of four ways: a name of the registry below, a diffusers folder, a single
`.safetensors` file, or a hub id (`owner/name`, or `owner/name@revision`). Everything that is read
is safetensors or JSON, and is checked before a loader sees it.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import (
    PICKLES,
    content_hash,
    read_header,
    refuse_pickle,
)
from .folder import (
    check_folder,
    models_of,
    weights,
)
from .low_rank import LOW_RANK, add_low_rank
from .models import load_model, read_tensors

HERE = Path(__file__).parents[1]
_STICKERS = HERE / "stickers"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")

AcceptLicense = bool | Callable[[str], bool]
"""Whether the licence is accepted, or a function that shows the text and asks."""


@dataclass(frozen=True)
class Student:
    """An entry of the registry. `revision` is the hub commit, where it is known beforehand."""

    name: str
    about: str
    license: str
    base: str = ""
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None

    def terms(self) -> str:
        """The licence in one line, as shown before a download."""
        return f"{self.name} ({self.hub_id or 'built in'}): {self.license}{self.base}"


NON_COMMERCIAL = (
    "CC BY-NC 4.0, non-commercial use only, https://creativecommons.org/licenses/by-nc/4.0/"
)
REGISTRY = {
    student.name: student
    for student in (
        Student(
            "stickers",
            "the built-in miniature: things on plain backgrounds, in seconds on a CPU",
            "Apache-2.0",
            folder=_STICKERS / "student",
        ),
        Student(
            "loopfree-sd2.1-base",
            "the paper authors' student of Stable Diffusion 2.1 base, 512 px",
            NON_COMMERCIAL,
            base="; base model Stable Diffusion 2.1: CreativeML Open RAIL++-M",
            hub_id="senmaonk/loopfree-sd2.1-base",
        ),
        Student(
            "loopfree-sd1.5",
            "the paper authors' student of Stable Diffusion 1.5, 512 px",
            NON_COMMERCIAL,
            base="; base model Stable Diffusion 1.5: CreativeML Open RAIL-M",
            hub_id="senmaonk/loopfree-sd1.5",
        ),
    )
}
# Loadable by name, to compare `stickers` with, but not in the registry. They share all with it but
# the UNet: the teacher's own, and the teacher's with a low-rank difference, for one step.
TEACHER, ONE_STEP = "stickers-teacher", "stickers-one-step"


@dataclass(frozen=True)
class Source:
    """Where a student was found: a diffusers folder or a single file, on this machine."""

    name: str
    path: Path
    revision: str | None = None
    unet: Path | None = None  # a UNet folder that stands in for the one in `path`
    adapter: Path | None = None  # matrices that are added to that UNet's weights
    timesteps: tuple[int, ...] | None = None  # that stand in for the folder's own

    def content_hash(self) -> str:
        """SHA-256 over all weights and the scheduler's config: what decides the picture."""
        if self.path.is_file():
            return content_hash([self.path])
        homes = dict.fromkeys(models_of(self.path), self.path)
        if self.unet is not None:
            homes["unet"] = self.unet.parent
        files = [path for name, home in homes.items() for path in weights(home / name)]
        files += [self.adapter] if self.adapter else []
        return content_hash([*files, self.path / "scheduler" / "scheduler_config.json"])

    def options(self, dtype: Any = None) -> dict[str, Any]:
        """What `TiuePipeline` is to be given beside the folder."""
        options: dict[str, Any] = {}
        if self.unet is not None:
            options["unet"] = load_unet(self.unet, dtype, self.adapter)
        if self.timesteps is not None:
            options["timesteps"] = list(self.timesteps)
        return options


# --- find ----------------------------------------------------------------------------------


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    accept_license: AcceptLicense = False,
    bar: type | None = None,
) -> Source:
    """Find a student, downloading it if it is on the hub and not here yet.

    Args:
        name: a registry name, a folder, a `.safetensors` file, or a hub id.
        revision: a hub commit, tag or branch; default: the one pinned by the first download.
        accept_license: needed for a first download only.
        bar: a tqdm class that shows a download's progress; by default the hub's own.

    Raises:
        TiueError: nothing by that name, or what is there cannot be used.
    """
    text = str(name)
    student = REGISTRY.get(text)
    if text in (TEACHER, ONE_STEP):
        folder, unet = check_folder(_STICKERS / "student"), _STICKERS / "teacher" / "unet"
        if text == TEACHER:
            return Source(text, folder, unet=unet)
        adapter = _STICKERS / "one-step" / LOW_RANK
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
        return Source(path.stem, path)
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


def overview() -> list[dict[str, Any]]:
    """The registry with what is on this machine; asks neither torch nor the network."""
    from . import hub

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
                "licence": student.license + student.base,
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
    from . import hub

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


# --- load ----------------------------------------------------------------------------------


def load(
    student: str | Path | Source = "stickers",
    *,
    device: str | None = None,
    dtype: Any = None,
    base: str | Path | None = None,
    accept_license: AcceptLicense = False,
) -> Any:
    """Load a student as a `TiuePipeline`.

    Args:
        student: see `find`.
        device: default: a GPU if there is one.
        dtype: a torch dtype or its name; default: float16 on a GPU, float32 on the CPU.
        base: for a single file: the folder that has what the file lacks (see `single_file`).

    Raises:
        TiueError: no such student, device or dtype.
    """
    from ..pipelines.base import TiuePipeline

    source = (
        student if isinstance(student, Source) else find(student, accept_license=accept_license)
    )
    device = device_of(device)
    dtype = dtype_of(dtype, device)
    if source.path.is_file():
        from .single_file import load_single_file

        pipe = load_single_file(source.path, base, dtype)
    else:
        options = source.options(dtype)
        pipe = TiuePipeline.from_pretrained(str(source.path), dtype=dtype, **options)
    return pipe.to(device)


def load_unet(folder: Path, dtype: Any = None, adapter: Path | None = None) -> Any:
    """A UNet by itself, from the folder that holds its config and weights.

    ``adapter`` is a file of matrices that become part of the weights (see `low_rank`).
    """
    from diffusers import UNet2DConditionModel

    unet = load_model(UNet2DConditionModel, folder, dtype)
    if adapter is not None:
        add_low_rank(unet, read_tensors([adapter]))
    return unet


def dtype_of(dtype: Any, device: str) -> Any:
    """A torch dtype by its name; by default float16 on a GPU, float32 on the CPU."""
    import torch

    if dtype is None:
        return torch.float32 if device == "cpu" else torch.float16
    if not isinstance(dtype, str):
        return dtype
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    chosen = getattr(torch, names.get(dtype, dtype), None)
    if chosen not in (torch.float32, torch.float16, torch.bfloat16):
        raise TiueError(f"no dtype '{dtype}': use float32, float16 or bfloat16")
    return chosen


def device_of(name: str | None) -> str:
    """``name`` if it can be used, by default the best there is."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError):
        raise TiueError(
            f"device '{name}' cannot be used here: leave --device out, or say cpu"
        ) from None
    return name
