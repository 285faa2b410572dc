"""A student by its name, as a pipeline on its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import TiueError
from ..students.registry import AcceptLicense
from ..students.resolve import Source, completed, find
from .base import TiuePipeline


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
    source = (
        completed(student, base)
        if isinstance(student, Source)
        else find(student, accept_license=accept_license, base=base)
    )
    device = device_of(device)
    dtype = dtype_of(dtype, device)
    options = source.options(dtype)
    pipe = TiuePipeline.from_pretrained(str(source.path), dtype=dtype, **options)
    return pipe.to(device)


def dtype_of(dtype: Any, device: str) -> Any:
    """A torch dtype by its name; by default float16 on a GPU, float32 on the CPU."""
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
