"""TiUE: one-pass text-to-image students.

    from tiue_core import TiuePipeline, OneWaySchedule, SplitUNet

The names are looked up on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import TiueOutput, TiuePipeline, draw_noise
    from .schedule import OneWaySchedule
    from .unet import Features, SplitUNet

_HOMES = {
    "OneWaySchedule": "schedule",
    "SplitUNet": "unet",
    "Features": "unet",
    "TiuePipeline": "pipeline",
    "TiueOutput": "pipeline",
    "draw_noise": "pipeline",
}

__version__ = "0.1.0"
__all__ = ["Features", "OneWaySchedule", "SplitUNet", "TiueOutput", "TiuePipeline", "draw_noise"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
