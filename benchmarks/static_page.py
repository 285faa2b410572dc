"""The page without a server, in a real Chromium: how soon it paints, and how often.

    python benchmarks/static_page.py                                # stickers, WebAssembly
    python benchmarks/static_page.py --webgpu                       # and WebGPU, where there is one
    python benchmarks/static_page.py --screenshot docs/static-page.png

A browser that has cached nothing opens the page off a static server on this machine. First with
one thread, as on a first visit to a server without the headers that threads need; then reloaded,
with the threads that the page's service worker lets it have. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers_site import SHOWN, Server, chromium, paint

GPU = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader"]


def visit(page: Any, url: str | None, seconds: float) -> dict[str, Any]:
    """Seconds to the first picture after opening (or reloading), then pictures as fast as asked."""
    began = time.monotonic()
    page.goto(url) if url else page.reload()
    page.wait_for_selector(SHOWN, timeout=300_000)
    first = time.monotonic() - began
    times = page.evaluate(
        """async (limit) => {
            const times = [], began = performance.now();
            for (let n = 1000; performance.now() - began < 1000 * limit; n++) {
                const asked = performance.now();
                seed.value = n;
                seed.dispatchEvent(new Event("input"));
                while (picture.dataset.seed !== String(n)) {
                    await new Promise((done) => setTimeout(done, 1));
                }
                times.push(performance.now() - asked);
            }
            return times;
        }""",
        seconds,
    )
    times.sort()
    return {
        "how": page.inner_text("#about").partition("(")[2].partition(")")[0],
        "first_picture_s": first,
        "picture_ms": times[len(times) // 2],
        "slowest_ms": times[-1],
        "pictures_per_second": 1000 * len(times) / sum(times),
    }


def measure(site: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    figures: dict[str, Any] = {
        "bytes": sum(file.stat().st_size for file in site.rglob("*") if file.is_file()),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    flags = GPU if arguments.webgpu else ["--disable-gpu"]
    with sync_playwright() as driver, Server(site) as server:
        browser = chromium(driver, *flags)
        figures["browser"] = browser.version
        page = browser.new_page(viewport={"width": 420, "height": 780}, device_scale_factor=2)
        figures["first visit"] = visit(page, server.url, arguments.seconds)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        figures["reloaded"] = visit(page, None, arguments.seconds)
        if arguments.screenshot:
            paint(page, "a cat and a boat on a blue background", 3)
            page.wait_for_timeout(1000 + 8 * figures["reloaded"]["picture_ms"])  # the variations
            page.screenshot(path=arguments.screenshot)
        browser.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, help="of `tiue app --static`; or it is made")
    parser.add_argument("--student", default="stickers")
    parser.add_argument("--seconds", type=float, default=10, help="of painting, each time")
    parser.add_argument("--webgpu", action="store_true")
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    if arguments.site:
        figures = measure(arguments.site, arguments)
    else:
        from tiue_core.app.static import write_page

        with tempfile.TemporaryDirectory() as folder:
            write_page(
                Path(folder),
                arguments.student,
                webgpu=arguments.webgpu,
                accept_license=False,
                json=False,
            )
            figures = measure(Path(folder), arguments)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
