"""Inside: the method as a toy. What is shared, what each decoder adds, and what its weight does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ..shared.measure import Stopwatch
from .broker import RequestBroker, told
from .choices import Choices
from .facts import decoders_of
from .paint import Picture, noted, pictures_of, plainly, png_of, ready, watched_pass
from .parts import INSTANT, WORKING, bars, data_url, empty, figure, gallery
from .parts import png_of as plain_png
from .state import Order, ServerConfig
from .worker import Models

SLIDERS = 8  # as many decoders have a slider; the paper studies K from 1 to 8
LANE = "inside"
_DARK, _MIDDLE, _BRIGHT = (13, 8, 65), (188, 55, 84), (252, 255, 164)  # of the feature maps

INTRO = """The encoder runs **once**. What it hands over, the *shared features* below, goes to
every decoder; each predicts the noise at its own timestep, and the latent is one sum:
z₀ = S · noise + Σ Eₜ · εₜ. Move a weight and see what that decoder is for; give the decoders
another prompt than the encoder's and see who decides what."""


@dataclass(frozen=True)
class Look:
    """What is seen inside one pass."""

    picture: Picture
    features: list[tuple[str, Any]]  # caption, PIL
    sums: list[tuple[str, Any]]  # the noise alone, then with one decoder after the other
    weights: list[tuple[str, float, float]]  # timestep, E_t, share of the sum of |E_t|


def look(models: Models, order: Order, gains: Sequence[float], second: str | None) -> Look:
    """Paint with a look at everything in between.

    Args:
        gains: factors on E_t, one per slider.
        second: the decoders' own prompt.
    """
    studio, order = ready(models, order)
    pipe = studio.painter.pipe
    watch = Stopwatch(pipe.device)
    with noted() as notes, plainly(), torch.no_grad():
        passed = watched_pass(pipe, order, watch, gains, second)
        schedule = passed.schedule
        with watch("VAE"):
            image = pictures_of(pipe, passed.latents)[0]
        added = schedule.weights.to(passed.noise).view(-1, 1, 1, 1) * passed.predictions[:, 0]
        start = schedule.signal * passed.noise
        sums = pictures_of(pipe, torch.cat([start, start + added.cumsum(0)]))
        maps = feature_maps(passed.features)
    times = schedule.timesteps.tolist()
    steps = ["S · noise", *(f"+ decoder t = {t}" for t in times)]
    total = schedule.weights.abs().sum().item() or 1.0
    weights = [
        (f"t = {t}", value, abs(value) / total)
        for t, value in zip(times, schedule.weights.tolist(), strict=True)
    ]
    # Where nothing was changed this is the picture of the Live tab, to the byte.
    png = png_of(models, studio, order, image)
    if second is not None or any(gain != 1 for gain in gains):
        png = plain_png(image)
    picture = Picture(order, png, image, watch.seconds, tuple(notes))
    return Look(picture, maps, list(zip(steps, sums, strict=True)), weights)


def feature_maps(features: Any) -> list[tuple[str, Any]]:
    """Skip and mid features, each as its mean magnitude over channels, scaled to its own range."""
    named = [(f"skip {i + 1}", skip) for i, skip in enumerate(features.skips)]
    maps = []
    for name, feature in [*named, ("mid", features.mid)]:
        channels, height, width = feature.shape[1:]
        level = feature[0].float().abs().mean(0).cpu().numpy()
        low, high = float(level.min()), float(level.max())
        image = _coloured((level - low) / ((high - low) or 1.0))
        size = (width * max(1, 64 // width), height * max(1, 64 // width))
        caption = f"{name}: {channels} × {height} × {width}"
        maps.append((caption, image.resize(size, Image.Resampling.NEAREST)))
    return maps


def _coloured(level: Any) -> Any:
    """Values in [0, 1] as a picture, from dark over red to yellow."""
    stops = np.array([_DARK, _MIDDLE, _BRIGHT], dtype=np.float32)
    channels = [np.interp(level, [0, 0.5, 1], stops[:, i]) for i in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def inside(broker: RequestBroker, choices: Choices) -> None:
    """The tab."""
    gr.Markdown(INTRO)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            prompt = gr.Textbox("a cat on a blue background", label="Prompt", lines=2)
            apart = gr.Checkbox(False, label="Another prompt for the decoders")
            second = gr.Textbox(
                "a frog on a red background", label="Decoders' prompt", lines=2, visible=False
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            first = _sliders(broker.config, broker.config.first)
            gains = [
                gr.Slider(-1, 3, step=0.05, label=f"Weight of decoder {i + 1}, times", **first[i])
                for i in range(SLIDERS)
            ]
            reset = gr.Button("Weights as trained")
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(
                empty("Change something, or press the button."), elem_id="tiue-inside"
            )
            show = gr.Button("Look inside", variant="primary")
            weights = gr.HTML("")
    gr.HTML('<h2 class="tiue-section">What each decoder adds</h2>')
    sums = gr.HTML("", elem_id="tiue-sums")
    gr.HTML('<h2 class="tiue-section">Shared features: mean magnitude over channels</h2>')
    features = gr.HTML("", elem_id="tiue-features")

    @told
    async def paint(
        request: gr.Request, text: str, other: bool, told_them: str, number: Any, *rest: Any
    ) -> Any:
        factors, chosen = rest[:SLIDERS], choices.named(rest[SLIDERS:])
        order = broker.config.order(
            text, number or 0, **{**chosen, "decoders": "exact", "negative": "", "guidance": 1.0}
        )
        theirs = broker.config.order(told_them).prompt if other else None
        times = [float(factor) for factor in factors]
        seen = await broker.do(
            request, lambda models: look(models, order, times, theirs), LANE, (LANE,)
        )
        return (
            figure(seen.picture),
            bars(seen.weights, "E_t, the weight of each decoder's prediction, and its share"),
            gallery((data_url(plain_png(image)), text) for text, image in seen.sums),
            gallery(((data_url(plain_png(image)), text) for text, image in seen.features), True),
        )

    inputs = [prompt, apart, second, seed, *gains, *choices.all]
    outputs = [picture, weights, sums, features]
    # A Textbox hears by `change` what is pasted, too, and by `input` only keys.
    changes = [prompt.change, apart.input, second.change, seed.input, show.click]
    gr.on(
        [*changes, *(gain.input for gain in gains)],
        paint,
        inputs,
        outputs,
        trigger_mode="always_last",
        **WORKING,
    )
    choices.student.input(
        lambda label: [gr.Slider(**slider) for slider in _sliders(broker.config, label)],
        [choices.student],
        gains,
        **INSTANT,
    )
    apart.change(lambda on: gr.Textbox(visible=on), [apart], [second], **INSTANT)
    back = reset.click(lambda: [1] * SLIDERS, None, gains, **INSTANT)
    back.then(paint, inputs, outputs, **WORKING)


def _sliders(config: ServerConfig, label: str) -> list[dict[str, Any]]:
    """One slider for each decoder of a student, as trained; the others are hidden."""
    source = config.students.get(label)
    shown = decoders_of(source) if source else 0
    return [{"visible": i < shown, "value": 1} for i in range(SLIDERS)]
