"""Student, LoRA, decoders and size: chosen once, used by the tabs that paint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .state import ServerConfig, size_of

NAMES = ("student", "decoders", "width", "height", "lora", "strength")


class Choices:
    """The components, in the order of `NAMES`."""

    def __init__(self, config: ServerConfig) -> None:
        with gr.Accordion("Student and size", open=False):
            with gr.Row():
                self.student = student(config, "Student")
                self.decoders = decoders(config, "Decoders", "exact")
            with gr.Row():
                width, height = _sides(config, config.first)
                self.width = gr.Slider(label="Width (px)", min_width=130, **width)
                self.height = gr.Slider(label="Height (px)", min_width=130, **height)
            with gr.Row(visible=bool(config.loras or config.train)):
                names = [("none", ""), *((name, name) for name in config.loras)]
                self.lora = gr.Dropdown(names, value="", label="LoRA", min_width=160)
                self.strength = gr.Slider(-2, 2, 1, step=0.05, label="LoRA strength", min_width=160)
            license = gr.Markdown(_license(config, config.first))

        def changed(label: str) -> Any:
            width, height = (gr.Slider(**side) for side in _sides(config, label))
            return width, height, _license(config, label)

        self.student.input(
            changed,
            [self.student],
            [self.width, self.height, license],
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


def student(config: ServerConfig, label: str, value: str | None = None) -> gr.Dropdown:
    return gr.Dropdown(
        list(config.students), value=value or config.first, label=label, min_width=160
    )


def decoders(config: ServerConfig, label: str, value: str) -> gr.Radio:
    return gr.Radio(list(config.modes), value=value, label=label, min_width=160)


def _sides(config: ServerConfig, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sliders for a student's width and height."""
    if label not in config.students:
        raise gr.Error("There is no such student here.", print_exception=False)
    *own, factor = size_of(config.students[label])
    width, height = (
        {
            "minimum": factor * max(side // 2 // factor, 1),
            "maximum": side * config.limits.enlarge,
            "value": side,
            "step": factor,
        }
        for side in own
    )
    return width, height


def _license(config: ServerConfig, label: str) -> str:
    return f"Licence of **{label}**: {config.license(label)}"
