"""Students: what there is, where it is found, and how a file or folder of one is read."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: What this package offered when it was one module, and where it is now.
_NAMES = {
    **dict.fromkeys(("AcceptLicense", "REGISTRY", "Student"), ".registry"),
    **dict.fromkeys(("Source", "find", "overview"), ".resolve"),
    "load_unet": ".models",
    **dict.fromkeys(("device_of", "dtype_of", "load"), "..pipelines.load"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMES[name], __name__), name)
