"""Lists: many prompts at once, by the engine of `tiue batch`, one batch a turn."""

from __future__ import annotations

import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..batch.engine import Run, local
from ..batch.jobs import Job
from ..batch.limits import tick
from ..batch.lists import KINDS, SUFFIXES, encoding_of
from ..batch.options import RunOptions
from ..batch.overview import html_index
from ..batch.schema import BadRow
from ..batch.session import BatchSession
from ..errors import TiueError
from .broker import RequestBroker, client_of, told
from .choices import Choices
from .parts import INSTANT, WORKING, empty, freed, table
from .state import ServerConfig

SHOWN = 200  # rows of the table
_BATCH = 4  # pictures a turn: others are waiting too
_PULSE = 1.0  # s between looks at the progress
SAMPLE = """prompt,seed,count
a cat on a blue background,1,
a gift and a boat on a pink background,2,2
a rocket on a white background,many,
"""


@dataclass(frozen=True)
class Checked:
    """A list that was looked through."""

    rows: list[dict[str, Any]]  # for the table, the first `SHOWN`
    pictures: int
    bad: int

    @property
    def caption(self) -> str:
        bad = f", {self.bad} bad row{'s' * (self.bad != 1)} left out" if self.bad else ""
        return f"{self.pictures} picture{'s' * (self.pictures != 1)} to make{bad}"


def plan_of(config: ServerConfig, text: Any, kind: Any) -> RunOptions:
    """A list as pasted, or as a client sent it.

    Raises:
        TiueError: it is no text, too long, or of no kind that we know.
    """
    if not isinstance(text, str):
        raise TiueError("the list is no text: paste it, or give a file")
    most = config.limits.lists.characters
    if len(text) > most:
        raise TiueError(f"the list has {len(text)} characters: give up to {most}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TiueError(f"a list is one of {', '.join(KINDS)}: choose its kind")
    return RunOptions(text, kind=kind, loras=config.lora_folder, batch_size=_BATCH)


def read_upload(path: Path, limit: int) -> tuple[str, str]:
    """An uploaded list's text and kind. Nothing is unpacked.

    Raises:
        TiueError: it is too large, no list by its name, or no text.
    """
    suffix = path.suffix[1:].lower()
    kind = SUFFIXES.get(suffix, suffix)
    if kind not in KINDS:
        raise TiueError(f"{path.name} is no list: give a file that ends in .{', .'.join(KINDS)}")
    if path.stat().st_size > limit:
        raise TiueError(f"{path.name} is larger than {limit >> 10} KB: give a smaller list")
    data = path.read_bytes()
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError:
        raise TiueError(f"{path.name} is no text in UTF-8: save it as UTF-8") from None
    if "\0" in text:
        raise TiueError(f"{path.name} is no text: give a list of prompts")
    return text, kind


def check(config: ServerConfig, studio: BatchSession, plan: RunOptions) -> Checked:
    """Look a list through without painting; the server has it done by `broker.looker`.

    Raises:
        TiueError: it has more rows, or asks for more pictures, than this server makes of one list.
    """
    rows: list[dict[str, Any]] = []
    pictures = bad = 0
    limits = config.limits.lists
    for number, job in enumerate(plan.jobs(studio.settings)):
        tick()
        if number >= limits.rows:
            raise TiueError(f"the list has more than {limits.rows} rows: make it shorter")
        if isinstance(job, BadRow):
            bad += 1
            where = f"{job.column}: " if job.column else ""
            row = {"line": job.line, "error": where + job.message}
        else:
            pictures += 1
            row = {"line": job.line, "prompt": job.prompt, "seed": job.seed}
            row["size"] = f"{job.width} × {job.height}"
        if len(rows) < SHOWN:
            rows.append(row)
        if pictures > limits.pictures:
            raise TiueError(
                f"the list asks for more than {limits.pictures} pictures: make it shorter"
            )
    return Checked(rows, pictures, bad)


class ListRun:
    """A list being made in a folder of its own, which goes when it is closed."""

    def __init__(
        self,
        broker: RequestBroker,
        client: str,
        student: str,
        studio: BatchSession,
        plan: RunOptions,
    ) -> None:
        self.broker, self.client, self.plan = broker, client, plan
        self.studio = BatchSession(studio.painter, studio.settings)  # with notes of its own
        self.folder = Path(tempfile.mkdtemp(prefix="tiue-list-"))
        self.run: Run | None = None
        self._student, self._turn = student, Future[Any]()

    def __iter__(self) -> Iterator[Any]:
        """`batch.engine.Result`s as they come."""
        try:
            with self.studio.run(self.plan, self.folder, engine=local(self._paint)) as self.run:
                yield from self.run
            html_index(self.folder, self.run.manifest.made())
        finally:
            self.close_turn()

    def _paint(self, batch: list[Job]) -> Any:
        def turn(models: Any) -> Any:
            return models.studio(self._student).painter.paint(batch)

        self._turn = self.broker.worker.submit(self.client, turn, lane="list")
        return self._turn.result()

    def cancel(self) -> None:
        """Stop after the batch at hand."""
        if self.run is not None:
            self.run.cancel()

    def close_turn(self) -> None:
        self._turn.cancel()

    def zip(self) -> Path:
        """Pictures, manifest and index as one file; pictures are compressed already."""
        path = self.folder / "pictures.zip"
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in files:
                if not file.name.startswith("."):
                    archive.write(file, file.relative_to(self.folder))
        return path

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def lists(broker: RequestBroker, choices: Choices) -> None:
    """The tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            text = gr.Textbox(
                SAMPLE, label="List", lines=8, max_lines=16, elem_id="tiue-list",
                info="One row per picture; columns prompt, seed, width, height, lora, name, count.",
            )  # fmt: skip
            kind = gr.Radio(list(KINDS), value="csv", label="Kind of list")
            upload = gr.File(
                label=f"Or a file, up to {broker.config.limits.lists.characters >> 20} MB",
                file_types=[".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".yaml", ".yml"],
                height=110,
                elem_id="tiue-upload",
            )
        with gr.Column(scale=4, min_width=280):
            rows = gr.HTML(empty("The rows appear here, with what is wrong in them."))
            with gr.Row():
                make = gr.Button("Make the pictures", variant="primary", elem_id="tiue-make")
                stop = gr.Button("Stop", interactive=False)
            progress = gr.Markdown("", elem_id="tiue-progress")
            save = gr.DownloadButton("Download as zip", visible=False, elem_id="tiue-zip")
    pictures = gr.Gallery(
        label="Pictures", columns=6, height="auto", object_fit="contain", elem_id="tiue-gallery",
        interactive=False, buttons=["download", "fullscreen"],
    )  # fmt: skip

    async def studio_of(request: gr.Request, label: Any) -> BatchSession:
        order = broker.config.order("", student=label)  # a student that is offered
        return await broker.do(request, lambda models: models.studio(order.student), "check")

    @told
    async def look(listed: str, sort: str, label: str, request: gr.Request) -> Any:
        plan = plan_of(broker.config, listed, sort)
        studio = await studio_of(request, label)
        checked = await broker.looker.look(check, broker.config, studio, plan)
        return table(checked.rows, ("line", "prompt", "seed", "size"), checked.caption)

    @told
    def read(file: str | None) -> Any:
        if file is None:
            return gr.skip(), gr.skip()
        return read_upload(Path(file), broker.config.limits.lists.characters)

    @told
    def run(listed: str, sort: str, label: str, request: gr.Request) -> Iterator[Any]:
        client = client_of(request)
        if client in broker.lists:
            raise TiueError("a list of yours is being made: stop it first, or wait")
        plan, order = plan_of(broker.config, listed, sort), broker.config.order("", student=label)
        future = broker.worker.submit(client, lambda models: models.studio(order.student))
        studio = future.result()
        checked = broker.looker.submit(check, broker.config, studio, plan).result()
        if not checked.pictures:
            raise TiueError("there is no good row in this list: mend the rows marked")
        made: list[tuple[str, str]] = []
        broker.lists[client] = work = ListRun(broker, client, order.student, studio, plan)
        busy, idle = gr.Button(interactive=False), gr.Button(interactive=True)
        try:
            hidden = gr.DownloadButton(visible=False)
            yield f"0 of {checked.pictures}", [], hidden, busy, idle
            spoke = time.monotonic()
            for result in work:
                if result.kind == "made":
                    made.append((str(result.path), result.job.prompt))
                if time.monotonic() - spoke > _PULSE:
                    spoke = time.monotonic()
                    yield f"{len(made)} of {checked.pictures}", made, hidden, busy, idle
            assert work.run is not None
            counts, stopped = work.run.counts, work.run.cancelled
            words = [f"**{counts.made} made**"]
            words += [f"{counts.failed} failed"] * bool(counts.failed)
            words += [f"{counts.bad} bad row{'s' * (counts.bad != 1)} left out"] * bool(counts.bad)
            words += ["stopped"] * stopped
            archive = gr.DownloadButton(value=str(work.zip()), visible=True)
            yield ", ".join(words), made, archive, idle, busy
        finally:
            broker.lists.pop(client, None)
            work.remove()  # what is shown has been copied by now

    @told
    def halt(request: gr.Request) -> None:
        running = broker.lists.get(client_of(request))
        if running is not None:
            running.cancel()

    listed = [text, kind, choices.student]
    quietly = {**WORKING, "trigger_mode": "always_last"}
    gr.on([text.change, kind.change], look, listed, [rows], **quietly)
    upload.upload(read, [upload], [text, kind], **WORKING)
    upload.upload(  # what was made of the list before is not this list's
        lambda: ("", [], gr.DownloadButton(visible=False)),
        None,
        [progress, pictures, save],
        **INSTANT,
    )
    outputs = [progress, pictures, save, make, stop]
    freed(make.click(run, listed, outputs, **WORKING), make, stop)
    stop.click(halt, None, None, **INSTANT)
    with suppress(AttributeError):
        broker.page.load(look, listed, [rows], **quietly)
