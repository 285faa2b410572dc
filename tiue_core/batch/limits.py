"""How much of a stranger's list is looked through, and for how long, away from the event loop.

Reading is plain Python, which nobody can stop from outside, so the readers ask `tick` as they go;
without a limit set it costs one look-up. Lists are looked through one after the other in one
thread, in slices of milliseconds: ten visitors' worst lists then take the event loop's turn no more
often than one does, and an answer that needs the interpreter ten times waits ten slices at most.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..errors import TiueError


@dataclass(frozen=True)
class ListLimits:
    """Of one list that somebody sends to a server."""

    characters: int = 1 << 20
    rows: int = 2000  # good and bad
    pictures: int = 500
    seconds: float = 3.0  # of looking it through
    waiting: int = 32  # lists that wait to be looked through


class TooLongError(TiueError):
    """The time for looking a list through is over."""


SLICE, REST = 0.002, 0.0002  # s: of reading, and of leaving the interpreter to other threads


@dataclass
class _Limit:
    """Of the reading in one thread."""

    seconds: float
    end: float
    rest: float  # when other threads have their turn


END: ContextVar[_Limit | None] = ContextVar("tiue_list_end", default=None)
"""When reading ends; None: there is no limit."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Reading lists in this block, in this thread, ends with `TooLongError` after `seconds`."""
    now = time.monotonic()
    token = END.set(_Limit(seconds, now + seconds, now + SLICE))
    try:
        yield
    finally:
        END.reset(token)


def tick() -> None:
    """Raise TooLongError if the time of `within` is over; let others have their turn."""
    limit = END.get()
    if limit is None or (now := time.monotonic()) < limit.rest:
        return
    if now > limit.end:
        raise TooLongError(
            f"the list takes longer than {limit.seconds:g} s to look through: "
            "make it shorter or simpler"
        )
    time.sleep(REST)  # else Python itself takes the turn away, and only every 5 ms
    limit.rest = time.monotonic() + SLICE


class Looker:
    """Looks lists through, one at a time, each within the limits' seconds."""

    def __init__(self, limits: ListLimits) -> None:
        self.limits = limits
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tiue-lists")
        self._places = threading.Semaphore(limits.waiting)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future:
        """Have `work(*arguments)` done, for a thread that can wait.

        Raises:
            TiueError: too many lists are waiting.
        """
        if not self._places.acquire(blocking=False):
            raise TiueError("too many lists are being looked through: try again in a moment")
        future = self._pool.submit(self._bounded, work, arguments)
        future.add_done_callback(lambda _: self._places.release())
        return future

    async def look(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The same for a coroutine: the event loop goes on meanwhile."""
        return await asyncio.wrap_future(self.submit(work, *arguments))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bounded(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with within(self.limits.seconds):
            return work(*arguments)
