"""What one visitor may do before others are kept waiting: uploads, guesses, lists."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tiue_core.app.guard import Guard
from tiue_core.app.quota import Quota
from tiue_core.app.state import Limits
from tiue_core.batch.jobs import Settings
from tiue_core.batch.limits import ListLimits, Looker, TooLongError, within
from tiue_core.batch.options import RunOptions as Plan
from tiue_core.batch.schema import BadRow
from tiue_core.errors import TiueError

SETTINGS = Settings("a student", "", (), 128, 128)
MANY = 1 << 20  # characters: as long as a list may be


def test_a_quota_is_of_an_address_and_of_all_and_comes_back() -> None:
    clock = [0.0]
    quota = Quota(60, each=10, total=15, now=lambda: clock[0])
    assert quota.take("a", 10) and not quota.take("a", 1)
    assert quota.take("b", 5) and not quota.take("b", 1)  # of all
    clock[0] = 61
    assert quota.take("b", 10)
    quota.give_back("b")
    assert quota.take("b", 10) and not quota.take("b")


# --- through the guard ---------------------------------------------------------------------


class Site:
    """A guard before a server that takes everything, but for a wrong password."""

    def __init__(self, limits: Limits, auth: bool = False) -> None:
        tokens = {"right": "ann"}
        self.app = SimpleNamespace(
            auth={"ann": "x"} if auth else None, tokens=tokens, cookie_id="1"
        )
        self.guard = Guard(self._serve, limits, lambda _: None)
        self.status = 200

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if self.status == 0:
            raise KeyError("broken")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def _called(self, scope: Any, receive: Any, send: Any) -> None:
        await self.guard({**scope, "app": self.app}, receive, send)

    def ask(self, method: str, path: str, address: str = "1.1.1.1", **more: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._called, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
                return await client.request(method, path, **more)

        return asyncio.run(once())


def test_queued_requests_are_taken_in_one_after_the_other() -> None:
    inside, most = 0, 0

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        nonlocal inside, most
        while (await receive()).get("more_body"):
            pass
        inside, most = inside + 1, max(most, inside + 1)
        await asyncio.sleep(0.01)
        inside -= 1
        if scope["path"].endswith("/broken"):
            raise KeyError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def visits() -> list[int]:
        guard = Guard(serve, Limits(), lambda _: None)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=guard), base_url="http://page/gradio_api"
        ) as client:
            paths = ["/queue/join", "/call/batch", "/call/broken", "/queue/join"]
            answers = (client.post(path, content=b"{}") for path in paths)
            return [answer.status_code for answer in await asyncio.gather(*answers)]

    assert asyncio.run(visits()) == [200, 200, 400, 200]
    assert most == 1


def test_uploads_end_at_the_quota_and_others_go_on() -> None:
    site = Site(Limits(quota=1 << 20, quota_all=2 << 20))
    answers = [site.ask("POST", "/gradio_api/upload", content=b"x").status_code for _ in range(20)]
    assert answers == [200] * 16 + [429] * 4  # each counts at least 64 KB
    assert site.ask("POST", "/gradio_api/upload", "2.2.2.2", content=b"x").status_code == 200
    assert site.ask("POST", "/gradio_api/queue/join", content=b"x").status_code == 200


def test_ten_wrong_passwords_a_minute_and_right_ones_do_not_count() -> None:
    site = Site(Limits(), auth=True)
    assert [site.ask("POST", "/login").status_code for _ in range(30)] == [200] * 30
    site.status = 400
    assert [site.ask("POST", "/login/").status_code for _ in range(12)] == [400] * 10 + [429] * 2
    assert site.ask("POST", "/login", "2.2.2.2").status_code == 400


@pytest.mark.parametrize(
    "path",
    ["cancel", "reset", "heartbeat/x", "app_id", "user", "token", "login_check", "info", "upload",
     "queue/join", "call/generate", "run/x", "file=/etc/passwd", "component_server"],
)  # fmt: skip
def test_what_gradio_leaves_open_asks_for_the_login(path: str) -> None:
    site = Site(Limits(), auth=True)
    path = f"/gradio_api/{path}"
    assert site.ask("POST", path).status_code == 401
    assert site.ask("POST", path, headers={"cookie": "access-token-1=guess"}).status_code == 401
    assert site.ask("GET", "/login").status_code == 200
    right = {"cookie": "access-token-unsecure-1=right"}
    assert site.ask("POST", path, headers=right).status_code == 200
    assert Site(Limits()).ask("POST", path).status_code == 200


def test_the_server_begins_once_without_a_login() -> None:
    site = Site(Limits(), auth=True)
    answers = [site.ask("GET", "/gradio_api/startup-events").status_code for _ in range(3)]
    assert answers == [200, 401, 401]


def test_what_broke_is_one_line() -> None:
    site = Site(Limits())
    site.status = 0
    answer = site.ask("POST", "/gradio_api/call/v2/nothing")
    assert answer.status_code == 400 and answer.text.startswith("The request was not understood")
    site.status = 500
    assert site.ask("POST", "/gradio_api/run/x").status_code == 400


# --- lists ---------------------------------------------------------------------------------

WORST = {
    "blank lines": ("\n" * MANY, "csv"),
    "empty rows": ("prompt\n" + ",\n" * (MANY // 2), "csv"),
    "open quotes": ("prompt\n" + '"a\n' * (MANY // 3), "csv"),
    "one scalar": ('- "' + "a\\n" * (MANY // 3) + '"', "yaml"),
    "one long row": ("- {prompt: a, lora: [" + "a," * (MANY // 2) + "]}", "yaml"),
    "nested": ("- " + "[" * MANY, "yaml"),
    "nested JSON": ("[" * MANY, "jsonl"),
    "many LoRAs": ('{"prompt":"a","lora":[' + ",".join(['"a"'] * 200_000) + "]}", "jsonl"),
    "counts": ("a --count 100000\n" * 60_000, "txt"),
    "groups": (("a " + "{a|b} " * 190 + "\n") * 900, "txt"),
    "columns": ("prompt," + ",".join(f"c{i}" for i in range(64_000)) + "\n", "csv"),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_list_ends_in_time(name: str) -> None:
    text, kind = WORST[name]
    used = time.thread_time()
    try:
        with within(0.5):
            for number, _ in enumerate(Plan(text, kind=kind).jobs(SETTINGS)):
                if number > 500:
                    break
    except TooLongError as error:
        assert "0.5 s" in str(error) and "\n" not in str(error)
    assert time.thread_time() - used < 10  # without limits minutes, or no end at all


def test_too_many_columns_and_loras_are_told() -> None:
    (row,) = Plan(WORST["columns"][0], kind="csv").jobs(SETTINGS)
    assert isinstance(row, BadRow) and "more than 1000 columns" in row.message
    keys = "{" + ",".join(f'"c{i}":1' for i in range(1001)) + "}"
    (row,) = Plan(keys, kind="jsonl").jobs(SETTINGS)
    assert isinstance(row, BadRow) and "more than 1000 columns" in row.message
    (row,) = Plan(WORST["many LoRAs"][0], kind="jsonl").jobs(SETTINGS)
    assert isinstance(row, BadRow) and "more than 100 LoRAs" in row.message
    (twice,) = Plan("prompt,a,a\nx,1,2\n", kind="csv").jobs(SETTINGS)
    assert isinstance(twice, BadRow) and "two columns are called 'a'" in twice.message


def test_lists_are_looked_through_one_by_one_and_no_more_than_may_wait() -> None:
    looker = Looker(ListLimits(waiting=2))

    async def visitors() -> None:
        go = threading.Event()
        first = asyncio.ensure_future(looker.look(go.wait))
        second = asyncio.ensure_future(looker.look(lambda: "looked"))
        await asyncio.sleep(0)
        with pytest.raises(TiueError, match="too many lists"):
            await looker.look(lambda: None)
        assert not second.done()
        go.set()
        assert await first and await second == "looked"

    asyncio.run(visitors())
    assert looker.submit(lambda: 1).result() == 1
    looker.close()
