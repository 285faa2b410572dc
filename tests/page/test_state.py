"""Orders and lists are checked before they wait; requests before they are read."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from tiue_core.app.broker import told
from tiue_core.app.guard import Guard
from tiue_core.app.lists import plan_of, read_upload
from tiue_core.app.parts import figure, table
from tiue_core.app.state import (
    Limits,
    Order,
    ServerConfig,
    check_size,
)
from tiue_core.errors import TiueError
from tiue_core.students.resolve import Source


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "style.safetensors").write_bytes(b"")
    sources = [Source("one", tmp_path / "a"), Source("one", tmp_path / "b")]
    return ServerConfig.of(sources, tmp_path / "loras")


def test_two_students_of_one_name_have_two_labels(config: ServerConfig) -> None:
    assert list(config.students) == ["one", "one (2)"] and config.first == "one"
    assert "nothing" in config.license("one")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "x" * 1_000_000}, "1000000 characters"),
        ({"prompt": 3}, "give a text"),
        ({"prompt": "a", "seed": -1}, "whole number"),
        ({"prompt": "a", "seed": 2**64}, "whole number"),
        ({"prompt": "a", "seed": 1.5}, "whole number"),
        ({"prompt": "a", "seed": True}, "whole number"),
        ({"prompt": "a", "seed": [1]}, "whole number"),
        ({"prompt": "a", "width": -8}, "whole number"),
        ({"prompt": "a", "width": 1e300}, "whole number"),
        ({"prompt": "a", "student": "two"}, "no student 'two' here"),
        ({"prompt": "a", "student": "/etc"}, "no student"),
        ({"prompt": "a", "student": "../../x"}, "no student"),
        ({"prompt": "a", "student": "x" * 1000}, r"\.\.\. here"),
        ({"prompt": "a", "lora": "../style"}, "no LoRA"),
        ({"prompt": "a", "strength": float("nan")}, "give a number"),
        ({"prompt": "a", "decoders": "all"}, "exact or fast or draft"),
    ],
)
def test_a_bad_order_is_refused_in_one_line(config: ServerConfig, given: Any, message: str) -> None:
    with pytest.raises(TiueError, match=message) as error:
        config.order(**given)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_an_order_as_it_is_painted(config: ServerConfig) -> None:
    order = config.order("  a\n cat\ud800 ", "7", lora="style", strength=1, decoders="draft")
    assert order == Order("one", "a cat?", 7, None, None, "fast", True, "style", 1.0)


@pytest.mark.parametrize("size", [(0, 7), (132, 128), (264, 128), (128, 1 << 16)])
def test_a_size_the_server_does_not_paint(size: tuple[int, int]) -> None:
    order = Order("s", "a", width=size[0] or None, height=size[1])
    with pytest.raises(TiueError, match="multiple of 8 up to 256"):
        check_size(order, (128, 128), 8, Limits())
    assert check_size(Order("s", "a", width=256), (128, 64), 8, Limits()).height == 64


# --- lists ---------------------------------------------------------------------------------


def test_uploads_of_the_wrong_kind(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"0" * 50_000_000)
    disguised = tmp_path / "bomb.csv"
    disguised.write_bytes(bomb.read_bytes())
    large, picture = tmp_path / "large.txt", tmp_path / "picture.jsonl"
    large.write_bytes(b"a cat\n" * 1000)
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    nul = tmp_path / "nul.txt"
    nul.write_bytes(b"a cat\0")
    messages = [(bomb, "no list"), (disguised, "no text"), (large, "larger"), (nul, "no text")]
    for path, message in [*messages, (picture, "no text")]:
        with pytest.raises(TiueError, match=message):
            read_upload(path, 5000 if path == large else 1 << 20)
    (tmp_path / "a.tsv").write_text("prompt\na cat\n", encoding="utf-16")
    assert read_upload(tmp_path / "a.tsv", 1 << 20) == ("prompt\na cat\n", "csv")


def test_pasted_lists(config: ServerConfig) -> None:
    for text, kind, message in ((3, "csv", "no text"), ("a", "xlsx", "one of"), ("a", None, "one")):
        with pytest.raises(TiueError, match=message):
            plan_of(config, text, kind)
    with pytest.raises(TiueError, match="characters"):
        plan_of(config, "x" * 2_000_000, "txt")


# --- what is shown -------------------------------------------------------------------------


def test_nothing_from_outside_becomes_html() -> None:
    from PIL import Image

    from tiue_core.app.paint import Picture

    evil = "<img src=x onerror=alert(1)>\"'"
    picture = Picture(Order("s", evil, 0, 8, 8), b"png", Image.new("RGB", (8, 8)), {})
    shown = figure(picture) + table([{"line": 1, "error": evil}, {"line": evil}], ("line",), evil)
    assert "<img src=x" not in shown and "&lt;img src=x" in shown

    @told
    def refuse() -> None:
        raise TiueError(evil)

    with pytest.raises(gr.Error) as error:
        asyncio.run(refuse())
    assert "<" not in str(error.value.message)


# --- the guard -----------------------------------------------------------------------------


def _through(path: str, body: Any = b"", limit: int = 1000, method: str = "POST") -> Any:
    left: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        taken = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            taken += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(taken).encode()})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=Guard(app, Limits(body=limit), left.append))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(ask()), left


def test_large_requests_are_refused_whether_they_say_so_or_not() -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b"x" * 100

    for body in (b"x" * 1001, pieces()):
        answer, _ = _through("/gradio_api/queue/join", body)
        assert answer.status_code == 413 and "too large" in answer.text
    answer, _ = _through("/gradio_api/queue/join", b"x" * 1000)
    assert answer.text == "1000"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/deep_link",
        "/gradio_api/vibe-edit",
        "/gradio_api/process_recording",
        "/gradio_api/stream/x/y/z/playlist.m3u8",
        "/gradio_api/run-history/records",
        "/gradio_api/custom_component/1/client/component/x",
        "/monitoring/summary",
        "/docs",
        "/config/../../etc/passwd",
    ],
)
def test_routes_that_the_page_does_not_need_are_not_there(path: str) -> None:
    answer, _ = _through(path, method="GET")
    assert answer.status_code == 404


def test_a_stream_that_breaks_off_is_a_client_that_left() -> None:
    left: list[str] = []

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data", "more_body": True})

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        await broken(scope, receive, send)
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def ask(app: Any, path: str, query: bytes = b"") -> None:
        scope = {
            "type": "http",
            "path": path,
            "query_string": query,
            "headers": [],
            "method": "GET",
        }
        await Guard(app, Limits(body=1000), left.append)(scope, nothing, nothing)

    for app in (whole, broken):
        asyncio.run(ask(app, "/gradio_api/queue/data", b"session_hash=visitor"))
        asyncio.run(ask(app, "/gradio_api/call/generate/event"))
        asyncio.run(ask(app, "/gradio_api/heartbeat/tab"))
        asyncio.run(ask(app, "/gradio_api/info"))
    assert left == ["visitor", "event", "tab"]
