"""A page that is open to the public, on a real server: the login, guesses at it, too many uploads.

`pytest -m slow tests/page/test_public.py`
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx
import pytest
from gradio.routes import App
from served import served
from test_page_server import PROMPT, generate, png

pytestmark = pytest.mark.slow
OPEN = re.compile(  # what shows the form to log in with, and logging out
    r"/|/(login|logout|theme\.css|robots\.txt|favicon\.ico|manifest\.json|pwa_icon)/?"
    r"|/(static|assets|svelte)/.+|/gradio_api/theme\.css/?"
)


def visitor(url: str, address: str = "127.0.0.1") -> httpx.Client:
    """A client of its own address."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=url, transport=transport, timeout=60)


def routes() -> list[tuple[str, str]]:
    """Every method and path that Gradio's server has, its parameters filled in."""
    found = set()
    for route in _all(App.create_app(gr.Blocks()).routes):
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for method in (getattr(route, "methods", None) or {"GET"}) - {"HEAD", "OPTIONS"}:
            found.add((method, path))
    return sorted(found)


def _all(several: list) -> list:
    """Routes, with those of routers that are included."""
    flat = []
    for route in several:
        inner = getattr(getattr(route, "original_router", route), "routes", [])
        flat += _all(inner) if inner else [route] * hasattr(route, "path")
    return flat


def test_every_route_asks_for_the_login_and_guesses_are_few() -> None:
    asked = routes()
    assert len(asked) > 40
    with served("--auth", "ann:secret") as (url, _), visitor(url) as client:
        answers = {
            (method, path): client.request(method, path).status_code
            for method, path in asked
            if not OPEN.fullmatch(path)
        }
        assert {one: status for one, status in answers.items() if status not in (401, 404)} == {}
        assert list(answers.values()).count(401) >= 15
        form = client.get("/").text
        assert "auth_required" in form and PROMPT not in form

        wrong = {"username": "ann", "password": "guess"}
        guesses = [client.post("/login", data=wrong).status_code for _ in range(12)]
        assert guesses == [400] * 10 + [429] * 2
        right = {"username": "ann", "password": "secret"}
        assert client.post("/login", data=right).status_code == 429  # not looked at
        with visitor(url, "127.0.0.2") as other:
            assert other.post("/login", data=right).status_code == 200
            assert png(generate(other, PROMPT)).startswith(b"\x89PNG")


def test_a_thousand_uploads_in_a_minute_end_at_the_quota_and_others_go_on() -> None:
    def upload(client: httpx.Client, number: int = 0) -> int:
        file = (f"{number}.csv", b"prompt\na cat\n")
        return client.post("/gradio_api/upload", files={"files": file}).status_code

    with (
        served("--engine", "torch") as (url, _),
        visitor(url) as many,
        visitor(url, "127.0.0.2") as other,
        ThreadPoolExecutor(4) as pool,
    ):
        generate(other, PROMPT)  # the student is loaded
        began = time.monotonic()
        sent = [pool.submit(upload, many, number) for number in range(1000)]
        pictures = [png(generate(other, PROMPT, seed)) for seed in range(3)]
        statuses = [one.result() for one in sent]
        print(f"1,000 uploads in {time.monotonic() - began:.0f} s")
        assert statuses.count(200) == 512 and statuses.count(429) == 488  # 64 KB each of 32 MB
        assert statuses[600:] == [429] * 400
        assert len(set(pictures)) == 3 and upload(other) == 200
