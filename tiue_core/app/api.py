"""Named endpoints for other programs: `/generate`, `/batch`, `/students`. See docs/page.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from ..batch.schema import BadRow
from .broker import RequestBroker, client_of, told
from .lists import ListRun, check, plan_of
from .parts import data_url
from .state import ServerConfig


def answer(picture: Any) -> dict[str, Any]:
    order = picture.order
    return {
        "image": data_url(picture.png),
        "file": picture.file,
        "prompt": order.prompt,
        "seed": order.seed,
        "width": order.width,
        "height": order.height,
        "student": order.student,
        "decoders": "draft" if order.draft else order.decoders,
        "milliseconds": {part: round(1000 * s, 1) for part, s in picture.seconds.items()},
        "notes": list(picture.notes),
    }


def api(broker: RequestBroker) -> None:
    """Add the endpoints to the page."""

    @told
    async def generate(
        prompt: str,
        seed: int = 0,
        width: int = 0,
        height: int = 0,
        decoders: str = "exact",
        student: str = "",
        lora: str = "",
        strength: float = 1.0,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Paint a prompt. Width and height of 0 are the student's own. The answer's `image` is a
        data URL: the PNG bytes that `tiue generate` writes for the same prompt and seed."""
        order = broker.config.order(
            prompt,
            seed,
            student=student,
            width=width,
            height=height,
            decoders=decoders,
            lora=lora,
            strength=strength,
        )
        return answer(await broker.paint(request, order))

    @told
    async def batch(
        rows: str,
        kind: str = "csv",
        student: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> AsyncIterator[dict[str, Any]]:
        """Paint a list, given as the text of a txt, csv, jsonl or yaml file. One answer per
        picture (`file`, `prompt`, `seed`, `image`) or bad row (`line`, `column`, `error`), as they
        come; the last one counts them (`made`, `failed`, `bad_rows`)."""
        client = client_of(request)
        label = broker.config.order("", student=student).student
        plan = plan_of(broker.config, rows, kind)
        studio = await broker.do(request, lambda models: models.studio(label))
        await broker.looker.look(check, broker.config, studio, plan)
        work = ListRun(broker, client, label, studio, plan)
        broker.lists[client] = work
        results = iter(work)
        try:
            # Each step paints and writes: not on the thread that answers everybody.
            while (result := await asyncio.to_thread(next, results, None)) is not None:
                yield _told_of(result)
            assert work.run is not None
            counts = work.run.counts
            yield {"made": counts.made, "failed": counts.failed, "bad_rows": counts.bad}
        finally:
            work.cancel()
            broker.lists.pop(client, None)
            work.remove()

    def students() -> list[dict[str, str]]:
        """The students offered, and their licences."""
        return catalogue(broker.config)

    for function in (generate, batch):
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
    gr.api(students, api_name="students", queue=False)


def catalogue(config: ServerConfig) -> list[dict[str, str]]:
    return [{"name": label, "licence": config.license(label)} for label in config.students]


def _told_of(result: Any) -> dict[str, Any]:
    if isinstance(result.row, BadRow):
        row = result.row
        return {"line": row.line, "column": row.column, "error": row.message}
    job = result.job
    told_of = {"line": job.line, "file": job.file + ".png", "prompt": job.prompt, "seed": job.seed}
    if result.path is None:
        return {**told_of, "error": result.message or result.kind}
    return {**told_of, "image": data_url(result.path.read_bytes())}
