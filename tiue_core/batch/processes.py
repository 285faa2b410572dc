"""`accelerate launch -m tiue_core batch ...`: a process per GPU, each with its share of batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """This process among those that were launched together."""

    index: int = 0
    count: int = 1
    device: str | None = None
    together: Callable[[], None] = lambda: None  # wait for the others
    gather: Callable[[Any], list[Any]] = lambda value: [value]  # everyone's, in order

    @property
    def first(self) -> bool:
        """Whether this one speaks, locks the folder and finishes it."""
        return self.index == 0

    @property
    def mine(self) -> Callable[[int], bool] | None:
        """Which batches this process paints; None: all of them."""
        if self.count == 1:
            return None
        return lambda number: number % self.count == self.index


def share(device: str | None = None) -> Share:
    """How many processes were launched, and which one this is."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return Share(device=device)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=True if device == "cpu" else None)
    return Share(
        state.process_index,
        state.num_processes,
        device or str(state.device),
        state.wait_for_everyone,
        lambda value: gather_object([value]),
    )
