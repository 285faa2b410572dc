"""The tabs as one page, and the server it runs on."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ..io.messages import one_line
from .api import api
from .broker import RequestBroker
from .choices import Choices
from .compare import compare
from .guard import Guard
from .inside import inside
from .lists import lists
from .live import live
from .state import ServerConfig
from .train import train

STYLE = Path(__file__).parent / "style.css"
# The system's own fonts: nothing is fetched from elsewhere.
FONTS = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
_CACHE = (600, 3600)  # s: how often pictures of lists are swept, and how old those are


_SAID = 300  # characters of a message


class Page(gr.Blocks):
    """Gradio's page, on which whatever goes wrong is said in one line, never as `error: null`."""

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:  # Gradio's own say the whole of what was sent
            error.message = one_line(str(error.message))[:_SAID]
            raise
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            message = "what was sent is not what this takes: check the number and types of values"
            raise gr.Error(message, print_exception=True) from error
        except Exception as error:
            message = f"this went wrong ({type(error).__name__}): the server's owner can read why"
            raise gr.Error(message, print_exception=True) from error


HEAD = """<div class="tiue-head"><h1>TiUE</h1>
<p>Text to picture in a single pass: one encoder, four decoders at once, no loop.</p></div>"""


def build(config: ServerConfig) -> tuple[gr.Blocks, RequestBroker]:
    """The page, and the broker that answers its requests. Loads no student."""
    # Of this process alone, unlike Gradio's own folder, and gone with it.
    cache = tempfile.TemporaryDirectory(prefix="tiue-page-")
    os.environ["GRADIO_TEMP_DIR"] = cache.name
    broker = RequestBroker(config, cache)
    with Page(title="TiUE", analytics_enabled=False, delete_cache=_CACHE) as page:
        broker.page = page
        gr.HTML(HEAD)
        choices = Choices(config)
        for name, tab in (("Live", live), ("Inside", inside), ("Lists", lists)):
            with gr.Tab(name, id=name):
                tab(broker, choices)
        with gr.Tab("Compare", id="Compare"):
            compare(broker, choices)
        if config.train is not None:
            with gr.Tab("Train", id="Train"):
                train(broker, choices)
        api(broker)
    # Waiting is the worker's business, so that clients take turns; see worker.py.
    page.queue(default_concurrency_limit=None, max_size=4 * config.limits.waiting)
    return page, broker


def theme() -> gr.themes.Base:
    """Gradio's Soft, with colours that have a contrast of 4.5 to 1 where they are text."""
    return gr.themes.Soft(font=FONTS, font_mono=MONO).set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_title_text_color="*primary_700",
        block_label_text_color="*primary_700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_600",
        input_placeholder_color="*neutral_600",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def launch(page: gr.Blocks, broker: RequestBroker, **options: Any) -> Any:
    """Serve the page; `options` are Gradio's own `launch`'s. Starts loading the first student."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    limits, first = broker.config.limits, broker.config.first

    def begin(models: Any) -> None:
        models.studio(first)
        # What is loaded stays. Python's collector would go through all of it every so often, half
        # a million objects, and nobody is answered meanwhile.
        gc.collect()
        gc.freeze()

    # Lists are looked through beside the event loop, which gets its turn after 1 ms, not after 5.
    sys.setswitchinterval(0.001)
    broker.worker.submit("the owner", begin)
    guard = Middleware(Guard, limits=limits, leave=broker.leave)
    settled: dict[str, Any] = {
        "theme": theme(),
        "css_paths": STYLE,
        "app_kwargs": {"middleware": [guard]},
        "max_file_size": limits.upload,
        "max_threads": 4 * limits.waiting,
        # Gradio keeps a copy of the page's configuration, 0.2 MB, for each client it ever saw, up
        # to this many; nothing of ours is in it.
        "state_session_capacity": limits.waiting,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "allowed_paths": [str(broker.config.train)] if broker.config.train else [],
        "quiet": True,
        "show_error": False,
    }
    return page.launch(**{**settled, **options})
