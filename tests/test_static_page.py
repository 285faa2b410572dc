"""The page without a server, in a real Chromium: it paints what onnxruntime paints here."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None or shutil.which("npm") is None:
    pytest.skip("needs chromium and npm", allow_module_level=True)

PIXELS = """() => {
    const canvas = document.getElementById("picture");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data);
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiue_core.page.static import write_page

    folder = tmp_path_factory.mktemp("site")
    write_page(folder, "stickers", webgpu=False, accept_license=False, json=False)
    return folder


class Server(ThreadingHTTPServer):
    """A static server that counts what it is asked for."""

    asked = 0


@pytest.fixture
def server(site: Path) -> Iterator[Server]:
    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012
            **SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_GET(self) -> None:
            Server.asked += 1
            super().do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_whole_page_is_small(site: Path) -> None:
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB")
    assert size <= 30_000_000


def test_it_paints_what_the_command_line_paints(site: Path, server: Server) -> None:
    from tiue_core.export.runtime import Graph

    prompt, seed = "a gift and a boat on a pink background", 2**33 + 5
    wanted = np.asarray(Graph(site / "student.onnx", "cpu")([prompt], [seed], None, None)[0], int)
    url = f"http://127.0.0.1:{server.server_port}/"
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        foreign: list[str] = []
        page.on("request", lambda r: foreign.append(r.url) if not _own(r.url, url) else None)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        began = time.monotonic()
        page.goto(url)
        page.wait_for_selector("canvas#picture[data-ms]", timeout=120_000)
        print(f"first picture after {time.monotonic() - began:.1f} s")
        page.fill("#seed", str(seed))
        page.fill("#prompt", "")
        page.type("#prompt", prompt, delay=15)  # the last text wins
        page.wait_for_function(
            "([p, s]) => { const d = document.getElementById('picture').dataset;"
            " return d.prompt === p && d.seed === s }",
            arg=[prompt, str(seed)],
            timeout=60_000,
        )
        print("a picture in", page.get_attribute("#picture", "data-ms"), "ms")
        pixels = np.array(page.evaluate(PIXELS)).reshape(*wanted.shape[:2], 4)[..., :3]
        assert np.abs(pixels - wanted).max() <= 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait_for_timeout(3000)  # the service worker keeps what a visit offline needs
        server.shutdown()
        server.server_close()  # nobody listens any more
        page.reload()
        page.wait_for_selector("canvas#picture[data-ms]", timeout=120_000)
        browser.close()
    assert not foreign and not errors


def _own(address: str, url: str) -> bool:
    return address.startswith((url, "blob:", "data:"))
