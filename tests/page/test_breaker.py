"""Every handler of the page with values of the wrong type, and visitors who hang up: slow tests."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import served
from test_page_server import JSON, PROMPT, call, generate, png

pytestmark = pytest.mark.slow

DEEP = json.loads("[" * 200 + "]" * 200)
WRONG = [None, True, -1, 1e308, "", "x" * 20_000, "\ud800", [], {}, [[1]], DEEP,
         {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]  # fmt: skip
ENDPOINTS = {"generate": 8, "batch": 3, "students": 0}


@pytest.fixture(scope="module")
def site() -> Iterator[httpx.Client]:
    with (
        served("--student", "stickers") as (url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=120) as client,
    ):
        yield client


def endpoint_calls() -> list[tuple[str, list[Any]]]:
    """Each argument of each endpoint wrong in each way, and the wrong number of them."""
    right = {
        "generate": [PROMPT, 0, 0, 0, "exact", "", "", 1.0],
        "batch": ["prompt\n", "csv", ""],
        "students": [],
    }
    calls = []
    for name, given in right.items():
        for place in range(len(given)):
            for value in WRONG:
                calls.append((name, [*given[:place], value, *given[place + 1 :]]))
        calls += [(name, given[:-1]), (name, [*given, 1]), (name, [])]
    return calls


def one_line(text: Any) -> bool:
    return isinstance(text, str) and 0 < len(text) < 400 and "\n" not in text.strip()


def test_endpoints_with_wrong_types_answer_in_one_line(site: httpx.Client) -> None:
    calls = endpoint_calls()
    assert len(calls) >= 92
    bad: list[Any] = []
    for name, data in calls:
        try:
            call(site, name, *data)
        except RuntimeError as error:
            text = str(error)
            if text[:3].isdigit():  # refused before it waited
                if text.startswith("5"):
                    bad.append((name, repr(data)[:80], text[:80]))
                continue
            told = json.loads(text)
            told = told.get("error") if isinstance(told, dict) else told
            if not one_line(told) or "Traceback" in told:
                bad.append((name, repr(data)[:80], text[:80]))
    assert not bad, f"{len(bad)} of {len(calls)}: {bad[:5]}"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"data": 3}', b'{"data": null}', b'{"data": {"a": 1}}', b"\xff\xfe",
     b"[" * 100_000, b'{"data": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}",
     b'{"data": [NaN]}', b'{"fn_index": 1e9, "data": []}',
     b'{"fn_index": -1, "data": [], "session_hash": "x"}',
     b'{"fn_index": "a", "data": [], "session_hash": ["x"]}'],
    ids=range(13),
)  # fmt: skip
def test_bodies_that_are_none(site: httpx.Client, body: bytes) -> None:
    paths = ("call/generate", "call/v2/generate", "call/nothing", "call/v2/nothing", "queue/join")
    paths += ("run/nothing", "api/nothing", "cancel", "reset", "component_server", "upload")
    for path in paths:
        answer = site.post(f"/gradio_api/{path}", content=body, headers=JSON)
        assert answer.status_code < 500, (path, answer.text[:200])


def handler(site: httpx.Client, number: int, data: list[Any], session: str) -> Any:
    """What a handler of the page answers: its output, or its error."""
    body = {"fn_index": number, "data": data, "session_hash": session}
    joined = site.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)
    assert joined.status_code < 500, joined.text[:200]
    if joined.status_code != 200:
        return {"error": joined.text}
    with site.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                message = json.loads(line[6:])
                if message["msg"] in ("process_completed", "unexpected_error"):
                    return message.get("output") or {"error": message.get("message")}
    return {"error": "the stream ended"}


def test_handlers_with_wrong_types_answer_in_one_line(site: httpx.Client) -> None:
    dice, bad, asked = random.Random(0), [], 0
    for number, one in enumerate(site.get("/config").json()["dependencies"]):
        if not one["inputs"]:
            continue
        for turn in range(5):
            data = [dice.choice(WRONG) for _ in one["inputs"]]
            out = handler(site, one.get("id", number), data, f"breaker-{number}-{turn}")
            asked += 1
            if "error" in out and not one_line(out["error"]):
                bad.append((number, one["targets"], out["error"]))
    print(f"{asked} handlers asked")
    assert not bad, f"{len(bad)} of {asked}: {bad[:5]}"


def test_twenty_clients_that_hang_up(site: httpx.Client) -> None:
    """Half leave in the middle; whoever stays has the picture of their own seed."""
    url, alone = str(site.base_url), {seed: png(generate(site, PROMPT, seed)) for seed in range(4)}
    wrong: list[Any] = []

    def visitor(number: int) -> None:
        dice = random.Random(number)
        with httpx.Client(base_url=url, trust_env=False, timeout=300) as client:
            for _ in range(4):
                seed = dice.randrange(4)
                if dice.random() < 0.5:
                    data = {"data": [PROMPT, seed, 0, 0, "exact", "", "", 1.0]}
                    event = client.post("/gradio_api/call/generate", json=data).json()["event_id"]
                    with client.stream("GET", f"/gradio_api/call/generate/{event}") as stream:
                        if dice.random() < 0.5:
                            next(stream.iter_raw(16), b"")
                    continue
                try:
                    if png(generate(client, PROMPT, seed)) != alone[seed]:
                        wrong.append((number, seed))
                except RuntimeError as error:
                    wrong.append((number, str(error)[:80]))

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert png(generate(site, PROMPT, 1)) == alone[1]
