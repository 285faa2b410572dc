"""Student, LoRA, decoders and size: chosen once, used by the tabs that paint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .facts import size_of
from .parts import INSTANT
from .state import Order, ServerConfig

NAMES = (
    *("student", "decoders", "width", "height"),
    *("negative", "guidance", "lora", "strength"),
)


class Choices:
    """The components, in the order of `NAMES`."""

    def __init__(self, config: ServerConfig) -> None:
        with gr.Accordion("Student, size, negative prompt", open=False):
            with gr.Row():
                self.student = student(config, "Student")
                self.decoders = decoders(config, "Decoders", "exact")
            with gr.Row():
                self.preset = gr.Dropdown(
                    _presets(config, config.first), value=None, label="Size", min_width=160
                )
                width, height = _sides(config, config.first)
                self.width = gr.Slider(label="Width (px)", min_width=130, **width)
                self.height = gr.Slider(label="Height (px)", min_width=130, **height)
            with gr.Row():
                self.negative = gr.Textbox(
                    "", label="Negative prompt", info="What to keep out.", min_width=160
                )
                self.guidance = gr.Slider(
                    1, 8, 1, step=0.1, label="Guidance", min_width=160,
                    info="1 is without, as students are trained; a negative prompt takes 2.",
                )  # fmt: skip
            with gr.Row(visible=bool(config.loras or config.train)):
                names = [("none", ""), *((name, name) for name in config.loras)]
                self.lora = gr.Dropdown(names, value="", label="LoRA", min_width=160)
                self.strength = gr.Slider(-2, 2, 1, step=0.05, label="LoRA strength", min_width=160)
            self.license = gr.Markdown(_license(config, config.first))

        def changed(label: str) -> Any:
            width, height = (gr.Slider(**side) for side in _sides(config, label))
            preset = gr.Dropdown(choices=_presets(config, label), value=None)
            return preset, width, height, _license(config, label)

        self.config = config
        follow = [self.preset, self.width, self.height, self.license]
        self.student.input(changed, [self.student], follow, **INSTANT)
        self.resized = self.preset.input(
            lambda size: tuple(map(int, size.split("x"))) if size else (gr.skip(), gr.skip()),
            [self.preset],
            [self.width, self.height],
            **INSTANT,
        )

    @property
    def restorable(self) -> list[Any]:
        """The components that `restored` fills."""
        return [*self.all, self.preset, self.license]

    def restored(self, order: Order) -> list[Any]:
        """Values of `restorable` for an order that was painted before."""
        asked, label = order.settings(), order.student
        width, height = _sides(self.config, label)
        values = {
            **{"negative": "", "guidance": 1.0, "lora": "", "strength": 1.0, **asked},
            "width": gr.Slider(**{**width, "value": order.width or width["value"]}),
            "height": gr.Slider(**{**height, "value": order.height or height["value"]}),
        }
        preset = gr.Dropdown(choices=_presets(self.config, label), value=None)
        return [*(values[name] for name in NAMES), preset, _license(self.config, label)]

    @property
    def all(self) -> list[Any]:
        return [getattr(self, name) for name in NAMES]

    @property
    def changes(self) -> list[Any]:
        """Events after which a picture is not what was asked for any more."""
        own = [part.input for part in self.all if part is not self.negative]
        return [*own, self.negative.change]  # `input` does not hear what is pasted

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


def _presets(config: ServerConfig, label: str) -> list[tuple[str, str]]:
    """Sizes by name: the student's own, and three shapes near it."""
    width, height, factor = size_of(config.students[label])
    low, wide = (factor * max(round(width * part / factor), 1) for part in (0.75, 1.5))
    sizes = {
        "as trained": (width, height),
        "portrait": (low, height),
        "landscape": (width, factor * max(round(height * 0.75 / factor), 1)),
        "wide": (wide, height),
    }
    return [(f"{name}, {w} × {h}", f"{w}x{h}") for name, (w, h) in sizes.items()]


def _license(config: ServerConfig, label: str) -> str:
    return f"Licence of **{label}**: {config.license(label)}"
