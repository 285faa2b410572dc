"""Where models lie, and when memory runs out: fewer timesteps at once, then fewer images, then a
clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..core.memory import out_of_memory
from ..errors import TiueError
from ..shared.layers import walk


def hooked(models: Sequence[nn.Module]) -> bool:
    """Whether something may move these models' weights about. diffusers asks its own question of
    all modules a dozen times a picture."""
    for model in models:
        for module in walk(model):
            own = module.__dict__
            if "_hf_hook" in own or "_diffusers_hook" in own:  # where their offloading hangs
                return True
    return False


def device_of(models: Sequence[nn.Module]) -> torch.device:
    """The first accelerator that weights lie on, as diffusers' ``device``, else the CPU."""
    found = [tensor.device for model in models for tensor in islice(model.parameters(), 1)]
    return next((one for one in found if one.type not in ("cpu", "meta")), found[0])


def in_batches(
    total: int,
    batch_size: int,
    chunk: int,
    paint: Callable[[range, int], Any],
) -> Iterator[tuple[range, Any]]:
    """Call ``paint(images, chunk)`` for ``total`` images, ``batch_size`` at a time.

    Where memory runs out ``chunk``, the timesteps decoded at once, is halved down to one, then the
    batch; both stay so for the images that follow.

    Raises:
        TiueError: not even one image at one timestep at a time fits.
    """
    first = 0
    while first < total:
        images = range(first, min(first + batch_size, total))
        try:
            painted = paint(images, chunk)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            painted = None  # retried outside, where the traceback no longer holds the tensors
        if painted is not None:
            yield images, painted
            first = images.stop
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if chunk > 1:
            chunk = (chunk + 1) // 2
        elif len(images) > 1:
            batch_size = (len(images) + 1) // 2
        else:
            raise TiueError(
                "out of memory with one image, one timestep at a time: "
                "give a smaller width and height"
            )
