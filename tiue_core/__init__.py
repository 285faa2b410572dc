"""TiUE: one-pass text-to-image students.

    from tiue_core import TiuePipeline

    pipe = TiuePipeline.from_pretrained("stickers")
    image = pipe("a cat on a blue background", seed=0).images[0]

The public face; each is looked up on first use, so that importing the package costs nothing:

    TiuePipeline    text to image in one pass, a diffusers pipeline; TiueOutput is what it returns
    OneWaySchedule  the noise levels, S and E_t, and the closed form: schedule.combine
    SplitUNet       the two halves of a UNet, encode and decode; Features go between them
    draw_noise      the noise of a seed
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.noise import draw_noise
    from .core.schedule import OneWaySchedule
    from .core.unet import Features, SplitUNet
    from .pipelines.base import TiueOutput, TiuePipeline

_HOMES = {
    "OneWaySchedule": "core.schedule",
    "SplitUNet": "core.unet",
    "Features": "core.unet",
    "TiuePipeline": "pipelines.base",
    "TiueOutput": "pipelines.base",
    "draw_noise": "core.noise",
}
#: Modules by the names they had before 0.2, for code written then.
_MOVED = {
    "schedule": "core.schedule",
    "unet": "core.unet",
    "arguments": "core.arguments",
    "pipeline": "pipelines.base",
    "xl": "pipelines.sdxl",
    "draft": "pipelines.draft",
    "folders": "students.folder",
    "hub": "students.hub",
    "single_file": "students.single_file",
    "adapters": "students.lora",
    "low_rank": "students.low_rank",
    "files": "io.files",
    "images": "io.images",
    "record": "io.record",
    "console": "cli.console",
    "generate": "cli.generate",
    "savings": "shared",
    "speed": "optimize",
    "systems": "baselines",
    "page": "app",
    "batch.templates": "batch.jobs",
    "batch.formats": "io.images",
    "batch.index": "batch.overview",
    "batch.sheet": "batch.overview",
    "batch.processes": "cli.batch_terminal",
}

__version__ = "0.1.0"
__all__ = ["Features", "OneWaySchedule", "SplitUNet", "TiueOutput", "TiuePipeline", "draw_noise"]


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ImportError as error:
        from .io.messages import TORCH, without_torch

        if (error.name or "").partition(".")[0] not in TORCH:
            raise
        raise ImportError(without_torch(str(error.name)), name=error.name) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its earlier name; it is the very module, not a copy."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = name.removeprefix(f"{__name__}.")
        for old, new in _MOVED.items() if own != name else ():
            if own == old or own.startswith(f"{old}."):
                home = f"{__name__}.{new}{own.removeprefix(old)}"
                return ModuleSpec(name, self, loader_state=home, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # a plain one, for as long as it takes to find the real one

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        sys.modules[module.__name__] = import_module(module.__spec__.loader_state)


sys.meta_path.insert(0, _Moved())  # before the finder of files, which would copy submodules
