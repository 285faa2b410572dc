"""TiUE in the Stable Diffusion WebUI family: what the WebUI loads. The rest is in ``webui/``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
from modules import scripts

ROOT = Path(__file__).resolve().parents[1]
TITLE = "TiUE: one-pass painting"
ELSEWHERE = (
    "TiUE needs a WebUI with Forge's backend: this one has none. Put the extension into Forge "
    "(lllyasviel/stable-diffusion-webui-forge), or use TiUE in ComfyUI."
)


def _ours() -> ModuleType:
    """The folder ``webui/`` as a package of another name: ``webui`` is the host's own module."""
    name = "tiue_webui"
    if name not in sys.modules:
        file = ROOT / "webui" / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=[str(file.parent)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


if importlib.util.find_spec("backend") and importlib.util.find_spec("huggingface_guess"):
    _ours()
    from tiue_webui import hooks

    hooks.start()
else:
    hooks = None
    print(f"[TiUE] {ELSEWHERE}")


class TiUE(scripts.Script):
    """The accordion, and what a job is told by it."""

    sorting_priority = -1
    _buttons: Any = None

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return False if is_img2img else scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        if hooks is not None:
            hooks.page.seen(self, component, kwargs.get("elem_id"))

    def ui(self, is_img2img: bool) -> list[Any]:
        with gr.Accordion(TITLE, open=False, elem_id="tiue"):
            if hooks is None:
                gr.Markdown(ELSEWHERE)
                return []
            return hooks.page.build(self)

    def before_process(self, p: Any, *_: Any) -> None:
        if hooks is not None:
            hooks.before(p)

    def process(self, p: Any, *arguments: Any) -> None:
        if hooks is not None:
            hooks.plan(p, *arguments)
