"""How soon the page answers while visitors paste the worst lists that it takes, again and again.

python benchmarks/page_lists.py --visitors 10 --seconds 20
python benchmarks/page_lists.py --paint          # and have them painted, through the endpoint
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "page"))
from served import served

MANY = 1 << 20  # characters: the longest list that is taken
LISTS = [
    ("prompt\n" + ",\n" * (MANY // 2 - 8), "csv"),
    ("prompt\n" + '"a\n' * (MANY // 3 - 8), "csv"),
    ("prompt," + ",".join(f"c{i}" for i in range(64_000)) + "\n", "csv"),
    ('- "' + "a\\n" * (MANY // 3 - 8) + '"', "yaml"),
    ("- {prompt: a, lora: [" + "a," * (MANY // 2 - 16) + "]}", "yaml"),
    ("a --count 400\n" * 1000, "txt"),
    (("a " + "{a|b} " * 190 + "\n") * 500, "txt"),
    ("[" * (MANY - 8), "jsonl"),
]


# A process of its own: the visitors' own work must not count as the server's.
LOOK = """
import json, sys, time, httpx
url, seconds, times = sys.argv[1], float(sys.argv[2]), []
with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
    client.get("/config").raise_for_status()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        client.get("/config").raise_for_status()
        times.append(time.perf_counter() - began)
        time.sleep(0.1)
print(json.dumps(times))
"""


def looking(url: str, seconds: float) -> subprocess.Popen[str]:
    """Asks for /config over and over; prints how long each answer took."""
    command = [sys.executable, "-c", LOOK, url, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def times_of(looker: subprocess.Popen[str]) -> list[float]:
    out, _ = looker.communicate()
    return json.loads(out)


class Pasted:
    """What the page does when a list is pasted into its box: the handler, by its place."""

    def __init__(self, url: str) -> None:
        config = httpx.get(f"{url}/config", trust_env=False).raise_for_status().json()
        box = next(
            part["id"]
            for part in config["components"]
            if part["props"].get("elem_id") == "tiue-list"
        )
        self.handler, inputs = next(
            (one["id"], one["inputs"])
            for one in config["dependencies"]
            if [box, "change"] in one["targets"]
        )
        self.rest = [
            part["props"].get("value") for part in config["components"] if part["id"] == inputs[2]
        ]

    async def send(self, client: httpx.AsyncClient, rows: str, kind: str) -> None:
        session = secrets.token_hex(8)
        body = {"data": [rows, kind, *self.rest], "fn_index": self.handler}
        data = json.dumps({**body, "session_hash": session}).encode()
        await _post(client, "/gradio_api/queue/join", data)
        query = {"session_hash": session}
        async with client.stream("GET", "/gradio_api/queue/data", params=query) as stream:
            async for line in stream.aiter_lines():
                if '"process_completed"' in line:
                    return


class Painted:
    """What another program does: the endpoint `/batch`, to the last picture."""

    def __init__(self, url: str) -> None:
        self.path = "/gradio_api/call/batch"

    async def send(self, client: httpx.AsyncClient, rows: str, kind: str) -> None:
        data = json.dumps({"data": [rows, kind, ""]}).encode()
        event = (await _post(client, self.path, data)).json()["event_id"]
        async with client.stream("GET", f"{self.path}/{event}") as stream:
            async for line in stream.aiter_lines():
                if line.startswith(("event: complete", "event: error")):
                    return


async def _post(client: httpx.AsyncClient, path: str, data: bytes) -> httpx.Response:
    answer = await client.post(path, content=data, headers={"content-type": "application/json"})
    return answer.raise_for_status()


async def visit(
    url: str, visitors: int, way: Pasted | Painted, looker: subprocess.Popen[str] | None
) -> int:
    """Visitors who send one list after the other, until the looker ends (None: one small list)."""
    options: dict[str, Any] = {"base_url": url, "timeout": 120, "trust_env": False}
    lists = LISTS if looker else [("prompt\na cat\n", "csv")]
    sent = 0

    async def visitor(turn: int) -> None:
        nonlocal sent
        async with httpx.AsyncClient(**options) as client:
            while True:
                await way.send(client, *lists[turn % len(lists)])
                turn += 1
                sent += 1
                if looker is None or looker.poll() is not None:
                    return

    await asyncio.gather(*(visitor(number) for number in range(visitors)))
    return sent


def measure(url: str, visitors: int, seconds: float, paint: bool) -> dict[str, float]:
    way = (Painted if paint else Pasted)(url)
    asyncio.run(visit(url, 1, way, None))  # the student is loaded after this
    quiet = times_of(looking(url, 2))
    looker = looking(url, seconds)
    sent = asyncio.run(visit(url, visitors, way, looker))
    latencies = times_of(looker)
    return {
        "visitors": visitors,
        "lists": sent,
        "config_alone_ms": round(1000 * statistics.median(quiet), 1),
        "config_median_ms": round(1000 * statistics.median(latencies), 1),
        "config_p95_ms": round(1000 * statistics.quantiles(latencies, n=20)[-1], 1),
        "config_max_ms": round(1000 * max(latencies), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visitors", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--paint", action="store_true", help="to the last picture")
    arguments = parser.parse_args()
    with served("--student", "stickers") as (url, _):
        print(
            json.dumps(
                measure(url, arguments.visitors, arguments.seconds, arguments.paint), indent=2
            )
        )


if __name__ == "__main__":
    main()
