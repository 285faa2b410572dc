"""Between Gradio and the worker: clients, messages, and who waits for what."""

from __future__ import annotations

import asyncio
import functools
import html
import inspect
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..batch.limits import Looker
from ..errors import TiueError
from ..io.messages import one_line
from .paint import Picture, paint
from .state import Order, ServerConfig
from .worker import LeftError, Models, SupersededError, Work, Worker


class RequestBroker:
    """Takes orders from all tabs.

    Args:
        cache: where Gradio keeps what is uploaded and what can be downloaded.
    """

    def __init__(
        self, config: ServerConfig, cache: tempfile.TemporaryDirectory | None = None
    ) -> None:
        self.config, self.cache = config, cache
        self.worker = Worker(Models(config), config.limits)
        self.looker = Looker(config.limits.lists)
        self.lists: dict[str, Any] = {}  # running lists, by client
        self.training: Any = None  # the one that runs
        self.page: Any = None  # the gr.Blocks

    async def do(
        self, request: gr.Request, work: Work, lane: str = "", replaces: Sequence[str] = ()
    ) -> Any:
        """The result of a piece of work, once it is its turn."""
        future = self.worker.submit(client_of(request), work, lane=lane, replaces=replaces)
        return await asyncio.wrap_future(future)

    async def paint(
        self, request: gr.Request, order: Order, lane: str = "", replaces: Sequence[str] = ()
    ) -> Picture:
        return await self.do(request, lambda models: paint(models, order), lane, replaces)

    def leave(self, client: str) -> None:
        """What a client has waiting is dropped, its list stops after the batch at hand."""
        self.worker.leave(client)
        running = self.lists.get(client)
        if running is not None:
            running.cancel()

    def close(self) -> None:
        for running in list(self.lists.values()):
            running.cancel()
        if self.training is not None:
            self.training.stop()
        self.looker.close()
        self.worker.close()
        if self.cache is not None:
            self.cache.cleanup()


def client_of(request: gr.Request) -> str:
    return str(getattr(request, "session_hash", "") or "nobody")


def told(handler: Callable) -> Callable:
    """A handler whose errors are messages on the page, and whose needless answers are none.

    What TiUE has to say is one line of text; Gradio would take it for HTML.
    """
    if inspect.isasyncgenfunction(handler):

        @functools.wraps(handler)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            try:
                async for value in handler(*args, **kwargs):
                    yield value
            except Exception as error:
                yield _answer_to(error)

        return stream

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def steps(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                yield _answer_to(error)

        return steps

    @functools.wraps(handler)
    async def once(*args: Any, **kwargs: Any) -> Any:
        try:
            result = handler(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            return _answer_to(error)

    return once


def _answer_to(error: Exception) -> Any:
    if isinstance(error, SupersededError | LeftError):
        return gr.skip()
    if isinstance(error, TiueError):
        raise gr.Error(html.escape(one_line(str(error))), print_exception=False) from None
    raise error
