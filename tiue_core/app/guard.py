"""What reaches the server at all: the routes that the page needs, requests of a bounded size.

It holds uploads and guesses at the login against a quota, answers for what broke, and asks for the
login where Gradio does not. It also notices who has left: a visitor's work is dropped when the
stream that would have told of it breaks off; Gradio itself would have it painted for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from .quota import Quota
from .state import Limits

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

_QUEUED = re.compile(rf"{_API}/(queue/join/?|call/[^/]+/?)")
_DIRECT = re.compile(rf"{_API}/(run|api)/")
_LEAST = 64 << 10  # bytes that an upload counts at least: each makes a folder
_log = logging.getLogger(__name__)
_STREAM = re.compile(rf"{_API}/(?:queue/data/?|call/[^/]+/([^/]+)|heartbeat/([^/]+))$")


class Guard:
    """ASGI middleware.

    Args:
        limits: bytes of a request's body, of uploads, and guesses at the login.
        leave: called with the session of a client whose stream broke off.
    """

    def __init__(self, app: Any, limits: Limits, leave: Callable[[str], None]) -> None:
        self.app, self.limit, self.leave = app, limits.body, leave
        self.uploads = Quota(3600, limits.quota, limits.quota_all)
        self.guesses = Quota(60, limits.guesses)
        self._started = False
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        if not ROUTES.fullmatch(scope["path"]):
            return await _answer(send, 404, "There is no such thing on this page.")
        if _closed(scope) and not self._starts(scope):
            return await _answer(send, 401, "Log in first.")
        address, guess = _address(scope), _is(scope, "/login")
        if guess and not self.guesses.take(address):
            return await _answer(send, 429, "Too many wrong passwords: wait a minute.")
        too_large = f"The request is too large: send at most {self.limit >> 20} MB."
        if _length(scope) > self.limit:
            return await _answer(send, 413, too_large)
        # A body that does not say how long it is counts as the longest that is taken.
        size = max(_length(scope) or self.limit, _LEAST)
        if _is(scope, _API + "/upload") and not self.uploads.take(address, size):
            return await _answer(send, 429, "You have uploaded much: try again in an hour.")

        direct = _DIRECT.match(scope["path"]) is not None
        # Gradio takes in a new visitor's request in 20 ms, on the event loop. Ten that come at once
        # go in one after the other, so that who asks for the page waits for one, not for ten.
        queued = scope["method"] == "POST" and _QUEUED.fullmatch(scope["path"]) is not None
        taken, refused, begun, ended, turn = 0, False, False, False, False

        async def receive_some() -> Message:
            nonlocal taken, refused, turn
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit and not ended:
                refused = True
                return {"type": "http.disconnect"}
            whole = message["type"] == "http.request" and not message.get("more_body")
            if queued and whole and not turn:
                await self._turn.acquire()
                turn = True
            return message

        async def send_on(message: Message) -> None:
            nonlocal begun, ended, turn
            if turn:
                turn = False
                self._turn.release()
            if refused:
                return
            if message["type"] == "http.response.start":
                begun = True
                if guess and message["status"] < 400:
                    self.guesses.give_back(address)
                if direct and message["status"] == 500:  # Gradio's answer to whatever it refuses
                    message = {**message, "status": 400}
            last = message["type"] == "http.response.body" and not message.get("more_body")
            ended = ended or last
            await send(message)

        session = _session(scope)
        try:
            await self.app(scope, receive_some, send_on)
        except Exception:
            if begun and not refused:
                raise
            if not refused:
                _log.exception("%s %s was not understood", scope["method"], scope["path"])
                await _answer(send, 400, "The request was not understood: see the API's page.")
                ended = True
        finally:
            if turn:
                self._turn.release()
            if session and not ended:
                self.leave(session)
        if refused and not ended:
            await _answer(send, 413, too_large)

    def _starts(self, scope: Message) -> bool:
        """Whether this is the request by which the server itself begins, once."""
        first = scope["path"].rstrip("/") == f"{_API}/startup-events" and not self._started
        self._started = self._started or first
        return first


def _closed(scope: Message) -> bool:
    """Whether the owner asks for a login that this request does not have."""
    app: Any = scope.get("app")
    if getattr(app, "auth", None) is None or not scope["path"].startswith(_API):
        return False
    cookies: SimpleCookie = SimpleCookie()
    with suppress(CookieError):
        cookies.load(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return not any(name in cookies and cookies[name].value in app.tokens for name in names)


def _is(scope: Message, path: str) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/") == path


def _address(scope: Message) -> str:
    return str((scope.get("client") or ("nobody",))[0])


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
