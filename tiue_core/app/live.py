"""Live: the picture follows the typing."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from .broker import RequestBroker, told
from .choices import Choices
from .paint import Picture
from .parts import BUTTONS, INSTANT, PAST, STRIP_SCRIPT, WORKING, empty, figure, latency, strip
from .state import SEED_LIMIT, restored

SCRIPT = Path(__file__).parent / "page.js"

EXAMPLES = (
    "a cat on a blue background",
    "a gift and a boat on a pink background",
    "a rocket on a white background",
    "a tree and a frog on a yellow background",
)
DRAWN = 2**32  # seeds that the dice may show: short enough to be read
LIVE, MORE = "live", "variations"  # lanes: a new text makes both needless


def live(broker: RequestBroker, choices: Choices) -> None:
    """The tab."""
    limits = broker.config.limits
    with gr.Row(equal_height=False, elem_id="tiue-live"):
        with gr.Column(min_width=0, elem_id="tiue-ask"):
            prompt = gr.Textbox(
                EXAMPLES[0],
                label="Prompt",
                info="The picture follows while you type; Enter paints, Shift+Enter is a new line.",
                lines=1,
                max_lines=4,
                autofocus=True,
                elem_id="tiue-prompt",
            )
            with gr.Row(equal_height=True):
                seed = gr.Number(
                    0,
                    label="Seed",
                    precision=0,
                    minimum=0,
                    maximum=SEED_LIMIT,
                    min_width=110,
                    elem_id="tiue-seed",
                )
                pin = gr.Checkbox(True, label="Pin", info="while typing", min_width=90)
                dice = gr.Button("🎲 Dice", min_width=80, elem_id="tiue-dice")
        with gr.Column(min_width=0, elem_id="tiue-shown"):
            picture = gr.HTML(empty("The first picture is on its way."), elem_id="tiue-picture")
        with gr.Column(min_width=0, elem_id="tiue-vary"):
            times = gr.HTML("", elem_id="tiue-times")
            several = gr.Slider(
                *(0, limits.variations, 4),
                step=1,
                label="Variations",
                info="The same prompt with the next seeds.",
                elem_id="tiue-count",
            )
            row = gr.HTML("", js_on_load=STRIP_SCRIPT, elem_id="tiue-variations")
        with gr.Column(min_width=0, elem_id="tiue-more"):
            gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
            past = gr.HTML(PAST, js_on_load=SCRIPT.read_text(encoding="utf-8"), elem_id="tiue-past")
            link = gr.Textbox(visible=False)

    wanted = [prompt, seed, *choices.all]

    @told
    async def paint(request: gr.Request, text: str, number: Any, pinned: bool, *chosen: Any) -> Any:
        if not pinned:
            number = secrets.randbelow(DRAWN)
        order = broker.config.order(text, number or 0, **choices.named(chosen))
        made = await broker.paint(request, order, LIVE, (LIVE, MORE))
        return figure(made, BUTTONS), latency(made), number or 0

    @told
    async def vary(request: gr.Request, count: Any, text: str, number: Any, *chosen: Any) -> Any:
        made: list[Picture] = []
        if not count:
            yield ""
        for step in range(1, min(int(count or 0), limits.variations) + 1):
            following = (int(number or 0) + step) % (SEED_LIMIT + 1)
            order = broker.config.order(text, following, **choices.named(chosen))
            made.append(await broker.paint(request, order, MORE))
            yield strip(made)

    quietly = {**WORKING, "trigger_mode": "always_last"}
    painting = ([prompt, seed, pin, *choices.all], [picture, times, seed])

    def then_vary(event: Any) -> None:
        event.success(vary, [several, *wanted], [row], **quietly)

    # `change` hears the examples and the history too; the seed is heard only from the user,
    # because an unpinned one is set by every picture.
    changes = [prompt.change, prompt.submit, seed.input, *choices.changes]
    then_vary(gr.on(changes, paint, *painting, **quietly))
    several.release(vary, [several, *wanted], [row], **quietly)

    def roll() -> int:
        return secrets.randbelow(DRAWN)

    def repaint(event: Any) -> None:
        # A seed that was chosen is used, pinned or not.
        fixed = gr.State(True)
        inputs = [prompt, seed, fixed, *choices.all]
        then_vary(event.then(paint, inputs, painting[1], **quietly))

    repaint(dice.click(roll, None, [seed], **INSTANT))

    def take(event: gr.EventData) -> int:
        return int(event.seed)

    repaint(row.select(take, None, [seed], **INSTANT))
    repaint(choices.resized)

    @told
    def restore(event: gr.EventData) -> Any:
        """A picture of the history, or one that was dropped, as its settings."""
        return restored_to(event.settings)

    @told
    def arrive(query: str) -> Any:
        """What the page's address asks for."""
        asked = dict(parse_qsl(query.lstrip("?"))) if isinstance(query, str) else {}
        if "prompt" not in asked:
            return [gr.skip() for _ in restorable]
        return restored_to(asked)

    def restored_to(settings: Any) -> list[Any]:
        with suppress(ValueError, RecursionError):
            settings = json.loads(settings) if isinstance(settings, str) else settings
        order = restored(broker.config, settings)
        return [order.prompt, order.seed, *choices.restored(order)]

    restorable = [prompt, seed, *choices.restorable]
    # By the queue: without it Gradio keeps to itself what was wrong.
    repaint(past.select(restore, None, restorable, **WORKING))
    here = "() => [location.search]"
    repaint(broker.page.load(arrive, [link], restorable, js=here, **WORKING))
