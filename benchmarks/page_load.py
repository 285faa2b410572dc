"""The page under load: many clients on loopback, each waiting for its own pictures.

    python benchmarks/page_load.py --clients 30 --seconds 60

Every answer is held, byte for byte, against the picture of that prompt and seed painted alone
beforehand. `first_picture_s` is from the start of `tiue app` to its first answer, and what other
programs take of the processors is in it; `first_picture_cpu_s` is what it took itself. Prints one
JSON object, and writes it with --out.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "page"))
from served import served

THINGS = ("cat", "dog", "boat", "gift", "rocket", "tree")
COLOURS = ("blue", "red", "pink", "yellow", "white")


def work_of(client: int) -> list[tuple[str, int]]:
    """Prompt and seed of a client's pictures, which no other client has."""
    prompt = f"a {THINGS[client % 6]} on a {COLOURS[client // 6 % 5]} background"
    return [(prompt, 1000 * client), (prompt, 1000 * client + 1)]


async def paint(client: httpx.AsyncClient, prompt: str, seed: int) -> bytes:
    data = {"data": [prompt, seed, 0, 0, "exact", "", "", 1.0]}
    answer = await client.post("/gradio_api/call/generate", json=data)
    answer.raise_for_status()
    route = f"/gradio_api/call/generate/{answer.json()['event_id']}"
    kind = ""
    async with client.stream("GET", route) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind == "complete":
                return base64.b64decode(json.loads(line[6:])[0]["image"].partition(",")[2])
            elif line.startswith("data: ") and kind == "error":
                raise RuntimeError(line[6:])
    raise RuntimeError("the stream ended without a picture")


def memory(process: int) -> float:
    """MB that a process has in memory."""
    text = Path(f"/proc/{process}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(
    url: str, process: int, clients: int, seconds: float, started: float
) -> dict[str, Any]:
    options: dict[str, Any] = {"base_url": url, "timeout": 600, "trust_env": False}
    alone: dict[tuple[str, int], bytes] = {}
    async with httpx.AsyncClient(**options) as one:
        (await one.get("/")).raise_for_status()
        await paint(one, *work_of(0)[0])
        first, first_cpu = time.perf_counter() - started, cpu(process)
        for number in range(clients):
            for work in work_of(number):
                alone[work] = await paint(one, *work)
    latencies: list[float] = []
    errors: list[str] = []
    wrong = 0
    sizes: list[float] = []
    began = time.perf_counter()

    async def visitor(number: int) -> None:
        nonlocal wrong
        async with httpx.AsyncClient(**options) as client:
            turn = 0
            while time.perf_counter() - began < seconds:
                work, turn = work_of(number)[turn % 2], turn + 1
                asked = time.perf_counter()
                try:
                    wrong += await paint(client, *work) != alone[work]
                except Exception as error:
                    errors.append(repr(error))
                else:
                    latencies.append(time.perf_counter() - asked)

    async def watch() -> None:
        while True:
            sizes.append(memory(process))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(visitor(number) for number in range(clients)))
    watching.cancel()
    total = time.perf_counter() - began
    rate = len(latencies) / total
    p95 = statistics.quantiles(latencies, n=20)[-1]
    third = max(len(sizes) // 3, 1)
    return {
        "first_picture_s": round(first, 1),
        "first_picture_cpu_s": round(first_cpu, 1),
        "clients": clients,
        "seconds": round(total, 1),
        "pictures": len(latencies),
        "images_per_second": round(rate, 2),
        "errors": len(errors),
        "first_errors": errors[:3],
        "another_ones_picture": int(wrong),
        "latency_median_s": round(statistics.median(latencies), 2),
        "latency_p95_s": round(p95, 2),
        "latency_bar_s": round(3 * clients / rate, 2),
        "memory_first_third_mb": round(statistics.mean(sizes[:third]), 1),
        "memory_last_third_mb": round(statistics.mean(sizes[-third:]), 1),
        "memory_peak_mb": round(max(sizes), 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with served() as (url, process):
        result = asyncio.run(load(url, process.pid, arguments.clients, arguments.seconds, started))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
