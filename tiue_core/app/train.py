"""The Train tab: pictures of one's own to a LoRA. There only where the owner asked for it.

Training takes minutes, so it has a thread of its own beside the one that paints, and there is one
at a time.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import TiueError
from ..io.images import slug
from .broker import RequestBroker, client_of, told
from .parts import INSTANT, WORKING, freed

METHODS = ("transfer", "paired", "one-pass")
FILES = 200  #: pictures and captions of one training
_PULSE = 1.0  # s between two looks at how far it is


class Training:
    """One run in its own thread; what it says is read from its attributes."""

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe
        self.done = self.total = 0
        self.losses: list[float] = []
        self.said: list[str] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="tiue-training", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()

    def sample(self) -> str | None:
        """The latest sample's file."""
        from ..train.lora.run import run_folder

        files = list(run_folder(self.recipe.out).glob("*/samples/*.png"))
        return str(max(files, key=lambda file: file.stat().st_mtime)) if files else None

    def _run(self) -> None:
        from ..train.lora.run import train_lora

        try:
            train_lora(
                self.recipe,
                self._told,
                stop=self._stop.is_set,
                say=self.said.append,
                before=lambda found: self.said.append(f"needs about {found.gigabytes:.1f} GB"),
            )
        except BaseException as error:
            self.error = error

    def _told(self, done: int, total: int, values: dict[str, float]) -> None:
        self.done, self.total = done, total
        self.losses.append(values["loss"])


def recipe_of(
    broker: RequestBroker, folder: Path, name: str, trigger: str, student: str, **settings: Any
) -> Any:
    """What was asked for on the page, checked.

    Raises:
        TiueError: no such student here, no name, or a setting out of bounds.
    """
    from ..train.recipe import LoraRecipe, checked

    source = broker.config.students[broker.config.order("", student=student).student]
    assert broker.config.train is not None
    if not name.strip():
        raise TiueError("the LoRA has no name: give it one")
    plain = ("method", "style")
    settings = {key: value if key in plain else int(value) for key, value in settings.items()}
    return checked(
        LoraRecipe,
        {
            **settings,
            "out": broker.config.train / f"{slug(name)}.safetensors",
            "images": folder,
            "trigger": trigger.strip() or None,
            "student": source.name if source.unet or source.name == "stickers" else source.path,
            "sample_every": 50,
        },
    )


def gather(uploads: Sequence[str] | None, folder: Path) -> None:
    """Copy what was uploaded into one folder, where a caption is beside its picture.

    Raises:
        TiueError: nothing, too much, or two files of one name.
    """
    if not uploads:
        raise TiueError("there are no pictures: add a dozen, and captions as .txt if you have them")
    if len(uploads) > FILES:
        raise TiueError(f"{len(uploads)} files are too many: give up to {FILES}")
    for upload in uploads:
        target = folder / Path(upload).name
        if target.exists():
            raise TiueError(f"two files are called {target.name}: rename one")
        shutil.copyfile(upload, target)


def train(broker: RequestBroker, choices: Any) -> None:
    """The tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            files = gr.File(
                label="Pictures, captions beside them (.txt)",
                file_count="multiple",
                file_types=[".png", ".jpg", ".jpeg", ".webp", ".bmp", ".txt"],
                height=160,
                elem_id="tiue-pictures",
            )
            name = gr.Textbox("", label="Name of the LoRA", max_length=60)
            trigger = gr.Textbox(
                "", label="Trigger word", max_length=60,
                info="The word for the new thing; put before captions that lack it.",
            )  # fmt: skip
            style = gr.Checkbox(
                False, label="A style, not a thing",
                info="It may change everything; 400 updates are enough.",
            )  # fmt: skip
            with gr.Accordion("Settings", open=False):
                method = gr.Radio(list(METHODS), value=METHODS[0], label="Method")
                steps = gr.Number(600, label="Updates of the teacher", precision=0, minimum=1)
                more = gr.Number(150, label="Updates of the student", precision=0, minimum=1)
                rank = gr.Number(16, label="Rank", precision=0, minimum=1, maximum=256)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        with gr.Column(scale=4, min_width=280):
            with gr.Row():
                begin = gr.Button("Train", variant="primary", elem_id="tiue-train")
                stop = gr.Button("Stop", interactive=False)
            progress = gr.Markdown("", elem_id="tiue-training")
            curve = gr.LinePlot(x="update", y="loss", height=200, label="Loss")
            sample = gr.Image(label="In one pass: new above, old below", interactive=False)
            save = gr.DownloadButton("Download the LoRA", visible=False, elem_id="tiue-lora")

    @told
    def run(
        uploads: list[str] | None,
        named: str,
        word: str,
        label: str,
        styled: bool,
        way: str,
        first: int,
        then: int,
        size: int,
        start: int,
        request: gr.Request,
    ) -> Iterator[Any]:
        client = client_of(request)
        if broker.training is not None:
            raise TiueError("something is being trained already: try again when it is done")
        with tempfile.TemporaryDirectory(prefix="tiue-train-") as scratch:
            gather(uploads, Path(scratch))
            settings = {"method": way, "steps": first, "student_steps": then, "rank": size}
            settings |= {"alpha": size, "seed": start, "style": styled}
            recipe = recipe_of(broker, Path(scratch), named, word, label, **settings)
            if recipe.out.exists():
                raise TiueError(f"there is a LoRA called {recipe.out.stem}: give another name")
            work = broker.training = Training(recipe)
            broker.lists[client] = _Leaves(work.stop)
            busy, idle = gr.Button(interactive=False), gr.Button(interactive=True)
            hidden = gr.DownloadButton(visible=False)
            try:
                while work.thread.is_alive():
                    yield _words(work), _plot(work), work.sample(), hidden, busy, idle
                    time.sleep(_PULSE)
                if work.error is not None:
                    raise work.error
            finally:
                work.stop()
                work.thread.join()
                broker.training = None
                broker.lists.pop(client, None)
        broker.config.loras[recipe.out.stem] = recipe.out
        word_ = recipe.trigger or "your captions' words"
        words = f"**{recipe.out.stem}** is written, and offered as a LoRA. Say *{word_}*."
        saved = gr.DownloadButton(value=str(recipe.out), visible=True)
        yield words, _plot(work), work.sample(), saved, idle, busy

    @told
    def halt() -> None:
        if broker.training is not None:
            broker.training.stop()

    given = [files, name, trigger, choices.student, style, method, steps, more, rank, seed]
    outputs = [progress, curve, sample, save, begin, stop]
    running = freed(begin.click(run, given, outputs, **WORKING), begin, stop)
    running.success(
        lambda: gr.Dropdown([("none", ""), *((n, n) for n in broker.config.loras)]),
        None,
        [choices.lora],
        **INSTANT,
    )
    stop.click(halt, None, None, **INSTANT)


class _Leaves:
    """What `broker.leave` cancels when a client goes."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


def _words(work: Training) -> str:
    if not work.done:
        return work.said[-1] if work.said else "reading the pictures"
    return f"{work.done} of {work.total}, loss {work.losses[-1]:.4f}"


def _plot(work: Training) -> Any:
    import pandas

    losses = list(work.losses)
    kept = range(0, len(losses), max(1, len(losses) // 200))
    return pandas.DataFrame({"update": [i + 1 for i in kept], "loss": [losses[i] for i in kept]})
