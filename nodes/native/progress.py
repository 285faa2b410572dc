"""A download's progress on the node, and an interrupt that ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy.model_management import InterruptProcessingException
from comfy.utils import ProgressBar
from huggingface_hub.utils import tqdm


class NodeBar(tqdm):
    """The hub's own bar in the console; what counts bytes is shown on the node as well."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.on_node = ProgressBar(100) if self.unit == "B" else None

    def update(self, n: float | None = 1) -> bool | None:
        displayed = super().update(n)
        if self.on_node is not None and self.total:
            self.on_node.update_absolute(self.n, self.total)  # raises when interrupted
        return displayed


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt that a download reports as its own failure be an interrupt again."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, InterruptProcessingException):
            raise error.__cause__ from None
        raise
