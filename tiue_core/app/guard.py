"""What reaches the server at all: the routes that the page needs, requests of a bounded size.

It also notices who has left. A visitor's work is dropped when the stream that would have told of it
breaks off; Gradio itself would have it painted for nobody.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = r"/gradio_api"
ROUTES = re.compile(
    rf"/|/(config|theme\.css|robots\.txt|favicon\.ico|manifest\.json|login|logout|pwa_icon)/?"
    rf"|/(assets|static|svelte)/.+|{_API}/(info|openapi\.json|theme\.css|startup-events|app_id)/?"
    rf"|{_API}/(login_check|user|token|upload|upload_progress|cancel|reset|component_server)/?"
    rf"|{_API}/queue/(join|data)/?|{_API}/(call|run|api)/.+|{_API}/heartbeat/[^/]+"
    rf"|{_API}/file=.+|/login_check/?|/user/?|/token/?"
)
"""What this page uses of Gradio's server. Not: its proxy, streams, recordings, deep links, run
history, monitoring, editors, custom components."""

_STREAM = re.compile(rf"{_API}/(?:queue/data/?|call/[^/]+/([^/]+)|heartbeat/([^/]+))$")


class Guard:
    """ASGI middleware.

    Args:
        limit: bytes of a request's body.
        leave: called with the session of a client whose stream broke off.
    """

    def __init__(self, app: Any, limit: int, leave: Callable[[str], None]) -> None:
        self.app, self.limit, self.leave = app, limit, leave

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        if not ROUTES.fullmatch(scope["path"]):
            return await _answer(send, 404, "There is no such thing on this page.")
        too_large = f"The request is too large: send at most {self.limit >> 20} MB."
        if _length(scope) > self.limit:
            return await _answer(send, 413, too_large)

        taken, refused, ended = 0, False, False

        async def receive_some() -> Message:
            nonlocal taken, refused
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit and not ended:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def send_on(message: Message) -> None:
            nonlocal ended
            if refused:
                return
            last = message["type"] == "http.response.body" and not message.get("more_body")
            ended = ended or last
            await send(message)

        session = _session(scope)
        try:
            await self.app(scope, receive_some, send_on)
        except Exception:
            if not refused:
                raise
        finally:
            if session and not ended:
                self.leave(session)
        if refused and not ended:
            await _answer(send, 413, too_large)


def _length(scope: Message) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else 0


def _session(scope: Message) -> str | None:
    """Whose stream this request is, if it is one."""
    found = _STREAM.fullmatch(scope["path"])
    if found is None:
        return None
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [])
    return found[1] or found[2] or (asked[0] if asked else None)


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    kind = (b"content-type", b"text/plain; charset=utf-8")
    headers = [kind, (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
