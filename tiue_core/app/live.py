"""Live: the picture follows the typing."""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

from .broker import RequestBroker, told
from .choices import Choices
from .parts import (
    STRIP_SCRIPT,
    empty,
    figure,
    latency,
    strip,
)
from .state import SEED_LIMIT

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
                info="The picture follows while you type.",
                lines=2,
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
            times = gr.HTML("", elem_id="tiue-times")
            several = gr.Checkbox(
                True, label="Variations", info="The same prompt with the next seeds."
            )
            row = gr.HTML("", js_on_load=STRIP_SCRIPT, elem_id="tiue-variations")
        with gr.Column(min_width=0, elem_id="tiue-more"):
            gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
            with gr.Accordion("History", open=False):
                keep = gr.Checkbox(
                    True, label="Keep a history", info="In this browser only; off erases it."
                )
                past = gr.Dataset(
                    components=["textbox", "number"],
                    headers=["Prompt", "Seed"],
                    samples=[],
                    label="Earlier prompts",
                    type="values",
                    layout="table",
                )
    history = gr.BrowserState({"keep": True, "past": []}, storage_key="tiue-history", secret="tiue")

    wanted = [prompt, seed, *choices.all]

    @told
    async def paint(request: gr.Request, text: str, number: Any, pinned: bool, *chosen: Any) -> Any:
        if not pinned:
            number = secrets.randbelow(DRAWN)
        order = broker.config.order(text, number or 0, **choices.named(chosen))
        made = await broker.paint(request, order, LIVE, (LIVE, MORE))
        return figure(made), latency(made), number or 0

    @told
    async def vary(request: gr.Request, shown: bool, text: str, number: Any, *chosen: Any) -> Any:
        if not shown:
            yield ""
            return
        made = []
        for step in range(1, limits.variations + 1):
            following = (int(number or 0) + step) % (SEED_LIMIT + 1)
            order = broker.config.order(text, following, **choices.named(chosen))
            made.append(await broker.paint(request, order, MORE))
            yield strip(made)

    quietly: dict[str, Any] = {
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_limit": None,
    }
    painting = ([prompt, seed, pin, *choices.all], [picture, times, seed])

    def then_vary(event: Any) -> None:
        event.success(vary, [several, *wanted], [row], **quietly)

    # `change` hears the examples and the history too; the seed is heard only from the user,
    # because an unpinned one is set by every picture.
    changes = [prompt.change, seed.input, *choices.changes]
    then_vary(gr.on(changes, paint, *painting, **quietly))
    several.change(vary, [several, *wanted], [row], **quietly)

    def roll() -> int:
        return secrets.randbelow(DRAWN)

    def repaint(event: Any) -> None:
        # A seed that was chosen is used, pinned or not.
        fixed = gr.State(True)
        inputs = [prompt, seed, fixed, *choices.all]
        then_vary(event.then(paint, inputs, painting[1], **quietly))

    instantly: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "queue": False,
    }
    repaint(dice.click(roll, None, [seed], **instantly))

    def take(event: gr.EventData) -> int:
        return int(event.seed)

    repaint(row.select(take, None, [seed], **instantly))
    _history(broker, history, keep, past, prompt, seed, repaint, instantly)
    repaint(broker.page.load(lambda: None, None, None, **instantly))


def _history(
    broker: RequestBroker,
    history: Any,
    keep: Any,
    past: Any,
    prompt: Any,
    seed: Any,
    repaint: Any,
    instantly: dict[str, Any],
) -> None:
    """Prompts that were rested upon: on Enter, and when the box is left."""
    limit = broker.config.limits.history

    def clean(state: Any) -> dict[str, Any]:
        state = state if isinstance(state, dict) else {}
        rows = state.get("past")
        rows = [
            [str(row[0])[:1000], row[1]]
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, list) and len(row) == 2 and isinstance(row[1], int)
        ]
        return {"keep": bool(state.get("keep", True)), "past": rows[:limit]}

    def show(state: Any) -> Any:
        state = clean(state)
        return gr.Dataset(samples=state["past"]), state["keep"]

    def remember(state: Any, text: str, number: Any) -> Any:
        state = clean(state)
        row = [text[:1000], int(number or 0)]
        if state["keep"] and text.strip():
            state["past"] = [row, *(old for old in state["past"] if old != row)][:limit]
        return state, gr.Dataset(samples=state["past"])

    def switch(state: Any, on: bool) -> Any:
        state = {"keep": on, "past": clean(state)["past"] if on else []}
        return state, gr.Dataset(samples=state["past"])

    broker.page.load(show, [history], [past, keep], **instantly)
    gr.on(
        [prompt.submit, prompt.blur],
        remember,
        [history, prompt, seed],
        [history, past],
        **instantly,
    )
    keep.input(switch, [history, keep], [history, past], **instantly)
    repaint(past.click(lambda row: (row[0], row[1]), [past], [prompt, seed], **instantly))
