"""Compare: two students, or exact against fast, from the same noise."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr
import numpy as np

from .broker import RequestBroker, told
from .choices import Choices, decoders, student
from .paint import Picture
from .parts import empty, latency, versus


def psnr(left: Any, right: Any) -> float:
    """Peak signal to noise ratio of two PIL images of one size, in dB; infinite for equal ones."""
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    error = float((difference**2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compare(broker: RequestBroker, choices: Choices) -> None:
    """The tab."""
    labels = list(broker.config.students)
    prompt = gr.Textbox("a cat on a blue background", label="Prompt", lines=2)
    with gr.Row(equal_height=True):
        with gr.Group():
            one, one_way = (
                student(broker.config, "Left"),
                decoders(broker.config, "Left decoders", "exact"),
            )
        with gr.Group():
            other = student(broker.config, "Right", labels[min(1, len(labels) - 1)])
            other_way = decoders(
                broker.config, "Right decoders", "exact" if len(labels) > 1 else "fast"
            )
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed of both", precision=0, minimum=0)
        show = gr.Button("Compare", variant="primary")
    picture = gr.HTML(empty("Two pictures from the same noise."), elem_id="tiue-compare")
    with gr.Row(equal_height=False):
        left_time, right_time = gr.HTML(""), gr.HTML("")

    @told
    async def paint(
        request: gr.Request,
        text: str,
        one: str,
        one_way: str,
        other: str,
        other_way: str,
        number: Any,
        *chosen: Any,
    ) -> Any:
        pair: list[Picture] = []
        named = choices.named(chosen)
        if len({one, other, named["student"]}) > 1:  # other students, other sizes
            named |= {"width": None, "height": None}
        for label, way in ((one, one_way), (other, other_way)):
            order = broker.config.order(
                text, number or 0, **{**named, "student": label, "decoders": way}
            )
            pair.append(await broker.paint(request, order, f"compare {len(pair)}"))
        left, right = pair
        names = (f"{one}, {one_way}", f"{other}, {other_way}")
        same = left.image.size == right.image.size
        decibel = psnr(left.image, right.image) if same else 0.0
        told_us = "pixel for pixel the same" if decibel == math.inf else f"PSNR {decibel:.1f} dB"
        note = f'<p class="tiue-note">{told_us}</p>' if same else ""
        return versus(left, right, names) + note, latency(left), latency(right)

    gr.on(
        [show.click, prompt.submit],
        paint,
        [prompt, one, one_way, other, other_way, seed, *choices.all],
        [picture, left_time, right_time],
        show_progress_on=[picture],
        concurrency_limit=None,
        api_visibility="private",
    )
