"""How soon the page answers while visitors send it the worst lists that it takes.

python benchmarks/page_lists.py --visitors 10 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

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


async def measure(url: str, visitors: int, seconds: float) -> dict[str, float]:
    options = {"base_url": url, "timeout": 120, "trust_env": False}
    sent, latencies, end = 0, list[float](), time.perf_counter() + seconds

    async def visitor(number: int) -> None:
        nonlocal sent
        async with httpx.AsyncClient(**options) as client:
            turn = number
            while time.perf_counter() < end:
                rows, kind = LISTS[turn % len(LISTS)]
                turn += 1
                call = await client.post("/gradio_api/call/batch", json={"data": [rows, kind, ""]})
                event = call.json()["event_id"]
                async with client.stream("GET", f"/gradio_api/call/batch/{event}") as stream:
                    async for line in stream.aiter_lines():
                        if line.startswith(("event: complete", "event: error")):
                            break
                sent += 1

    async def look() -> None:
        async with httpx.AsyncClient(**options) as client:
            while time.perf_counter() < end:
                began = time.perf_counter()
                (await client.get("/config")).raise_for_status()
                latencies.append(time.perf_counter() - began)
                await asyncio.sleep(0.1)

    async with httpx.AsyncClient(**options) as one:
        call = await one.post(
            "/gradio_api/call/batch", json={"data": ["prompt\na cat\n", "csv", ""]}
        )
        async with one.stream("GET", f"/gradio_api/call/batch/{call.json()['event_id']}") as stream:
            async for _ in stream.aiter_lines():  # the student is loaded after this
                pass
        quiet = []
        for _ in range(20):
            began = time.perf_counter()
            await one.get("/config")
            quiet.append(time.perf_counter() - began)
    end = time.perf_counter() + seconds
    await asyncio.gather(look(), *(visitor(number) for number in range(visitors)))
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
    arguments = parser.parse_args()
    with served("--student", "stickers") as (url, _):
        print(
            json.dumps(asyncio.run(measure(url, arguments.visitors, arguments.seconds)), indent=2)
        )


if __name__ == "__main__":
    main()
