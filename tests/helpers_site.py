"""A static server and a Chromium for the page that needs no server of ours."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
SHOWN = "canvas#picture[data-ms]"  # once there is a picture


class Server(ThreadingHTTPServer):
    """``with Server(folder) as server: server.url``; no headers but the plainest."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A page that was closed while it loaded is nothing to tell of."""

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *arguments: Any) -> None:
        pass


def chromium(driver: Any, *more: str) -> Any:
    """A fresh browser: nothing cached."""
    return driver.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS, *more])


def paint(page: Any, prompt: str, seed: int) -> None:
    """Type, as a person does, and wait for the picture of just this."""
    page.fill("#seed", str(seed))
    page.fill("#prompt", "")
    page.type("#prompt", prompt, delay=15)
    page.wait_for_function(
        "([p, s]) => { const d = document.getElementById('picture').dataset;"
        " return d.prompt === p && d.seed === s }",
        arg=[prompt, str(seed)],
        timeout=120_000,
    )
