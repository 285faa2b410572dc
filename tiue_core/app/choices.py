"""Student, LoRA, decoders and size: chosen once, used by the tabs that paint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .state import House, size_of

NAMES = ("student", "decoders", "width", "height", "lora", "strength")


class Choices:
    """The components, in the order of `NAMES`."""

    def __init__(self, house: House) -> None:
        with gr.Accordion("Student and size", open=False):
            with gr.Row():
                self.student = student(house, "Student")
                self.decoders = decoders(house, "Decoders", "exact")
            with gr.Row():
                width, height = _sides(house, house.first)
                self.width = gr.Slider(label="Width (px)", min_width=130, **width)
                self.height = gr.Slider(label="Height (px)", min_width=130, **height)
            with gr.Row(visible=bool(house.loras or house.train)):
                names = [("none", ""), *((name, name) for name in house.loras)]
                self.lora = gr.Dropdown(names, value="", label="LoRA", min_width=160)
                self.strength = gr.Slider(-2, 2, 1, step=0.05, label="LoRA strength", min_width=160)
            licence = gr.Markdown(_licence(house, house.first))

        def changed(label: str) -> Any:
            width, height = (gr.Slider(**side) for side in _sides(house, label))
            return width, height, _licence(house, label)

        self.student.input(
            changed,
            [self.student],
            [self.width, self.height, licence],
            show_progress="hidden",
            api_visibility="private",
            queue=False,
        )

    @property
    def all(self) -> list[Any]:
        return [getattr(self, name) for name in NAMES]

    @property
    def changes(self) -> list[Any]:
        """Events after which a picture is not what was asked for any more."""
        return [part.input for part in self.all]

    @staticmethod
    def named(values: Sequence[Any]) -> dict[str, Any]:
        """What a handler was given for `all`, by name."""
        return dict(zip(NAMES, values, strict=True))


def student(house: House, label: str, value: str | None = None) -> gr.Dropdown:
    return gr.Dropdown(list(house.students), value=value or house.first, label=label, min_width=160)


def decoders(house: House, label: str, value: str) -> gr.Radio:
    return gr.Radio(list(house.modes), value=value, label=label, min_width=160)


def _sides(house: House, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sliders for a student's width and height."""
    if label not in house.students:
        raise gr.Error("There is no such student here.", print_exception=False)
    *own, factor = size_of(house.students[label])
    width, height = (
        {
            "minimum": factor * max(side // 2 // factor, 1),
            "maximum": side * house.limits.enlarge,
            "value": side,
            "step": factor,
        }
        for side in own
    )
    return width, height


def _licence(house: House, label: str) -> str:
    return f"Licence of **{label}**: {house.licence(label)}"
