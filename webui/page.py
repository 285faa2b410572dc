"""The accordion on the txt2img tab."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import sd_models

from tiue_core.errors import TiueError

from . import students
from .plan import SPEEDS
from .sampler import NAME

SET_UP = ("txt2img_sampling", "txt2img_cfg_scale", "txt2img_width", "txt2img_height")
HELP = (
    f"Choose a student's checkpoint (`tiue/stickers` is built in) and the sampling method *{NAME}*."
    " A student paints in one pass, at CFG scale 1 and the size that it was trained for. An "
    "ordinary model painted like this is a blur."
)


def seen(script: Any, component: Any, elem_id: str | None) -> None:
    """Remember the page's own fields as they are made; the button's are all there at last."""
    if elem_id in SET_UP:
        fields = vars(script).setdefault("fields", {})
        fields[elem_id] = component
        _connect(script)


def build(script: Any) -> list[Any]:
    """The accordion's inside; returns what a job is given, in order."""
    gr.Markdown(HELP)
    with gr.Row():
        decoders = gr.Slider(
            label="Decoders (0: the student's)",
            minimum=0,
            maximum=16,
            step=1,
            value=0,
            elem_id="tiue_decoders",
        )
        speed = gr.Radio(
            label="Speed",
            info="fast leaves out decoders that carry less than 1 % of the weight",
            choices=list(SPEEDS),
            value=SPEEDS[0],
            elem_id="tiue_speed",
        )
    with gr.Row():
        script.set_up = gr.Button("Set up for the student", elem_id="tiue_set_up")
    with gr.Row():
        folder = gr.Textbox(
            label="A student's diffusers folder, on this machine",
            elem_id="tiue_folder",
            scale=4,
        )
        convert = gr.Button("Convert to a checkpoint", elem_id="tiue_convert", scale=1)
    said = gr.Markdown(elem_id="tiue_said")
    convert.click(_convert, inputs=[folder], outputs=[said])
    _connect(script)
    script.infotext_fields = [(decoders, "TiUE decoders"), (speed, "TiUE speed")]
    script.paste_field_names = ["TiUE decoders", "TiUE speed"]
    return [decoders, speed]


def _connect(script: Any) -> None:
    """Give the button its fields, once all of them are on the page."""
    fields, button = vars(script).get("fields", {}), vars(script).get("set_up")
    if button is not None and len(fields) == len(SET_UP):
        script.set_up = None
        button.click(_set_up, inputs=[], outputs=[fields[name] for name in SET_UP])


def _set_up() -> list[Any]:
    """Sampler, CFG scale, width and height for the checkpoint that is chosen."""
    made = students.chosen()
    side = 512 if made is None else made.side
    return [gr.update(value=value) for value in (NAME, 1.0, side, side)]


def _convert(folder: str) -> str:
    try:
        name = students.convert(folder)
    except TiueError as error:
        return str(error)
    return (
        f"{name} is in {sd_models.model_path}/tiue: press the refresh button beside *Checkpoint* "
        "and choose it."
    )
