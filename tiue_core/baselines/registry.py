"""Every system by name: the rows of Tables S1 and S2, the miniature's own, and pictures.

A system's sampler is made from this table alone, whatever the scheduler's config beside the
weights says; only the noise schedule (betas) is the weights' own. So a row means one thing.
"""

from __future__ import annotations

from . import miniature
from .paper_rows import ROWS
from .system import Part, System

_IMAGES = System(
    "images",
    "pictures of your own, made by anything",
    "images",
    pixels=0,
    parts=(Part("images"),),
    prediction="any",
    note="images:FOLDER; the n-th picture by name belongs to the n-th prompt",
)
_MINIATURE = miniature.rows()
REGISTRY: dict[str, System] = {system.name: system for system in (*ROWS, *_MINIATURE, _IMAGES)}
MINIATURE: tuple[str, ...] = tuple(system.name for system in _MINIATURE)
