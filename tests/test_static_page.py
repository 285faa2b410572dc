"""The page without a server, in a real Chromium: it paints what the command line paints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_site import CHROMIUM, SHOWN, Server, chromium, paint
from PIL import Image

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("playwright.sync_api")
if CHROMIUM is None or shutil.which("npm") is None:
    pytest.skip("needs chromium and npm", allow_module_level=True)

ROOT = Path(__file__).parents[1]
PROMPT, SEED = "a gift and a boat on a pink background", 2**33 + 5
PIXELS = """() => {
    const canvas = document.getElementById("picture");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data);
}"""
NO_SIMD = "WebAssembly.validate = () => false;"
NO_WASM = "delete globalThis.WebAssembly;"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiue_core.app.static import write_page

    folder = tmp_path_factory.mktemp("site")
    write_page(folder, "stickers", webgpu=False, accept_license=False, json=False)
    return folder


@pytest.fixture(scope="module")
def browser(playwright_driver: Any) -> Iterator[Any]:
    made = chromium(playwright_driver, "--disable-gpu")
    yield made
    made.close()


def generate(out: Path, *arguments: object) -> np.ndarray:
    """The command line's picture, (H, W, 3)."""
    command = [sys.executable, "-m", "tiue_core", "generate", *map(str, arguments)]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(json.loads(done.stdout)["images"][0]["path"]) as image:
        return np.asarray(image, int)


def painted(page: Any) -> np.ndarray:
    shape = page.evaluate("[picture.height, picture.width, 4]")
    return np.array(page.evaluate(PIXELS)).reshape(shape)[..., :3]


def test_the_whole_page_is_small(site: Path) -> None:
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB")
    assert size <= 30_000_000


def test_it_paints_what_the_command_line_paints(site: Path, browser: Any, tmp_path: Path) -> None:
    graph = ["--graph", site / "student.onnx"]
    by_graph = generate(tmp_path, PROMPT, "--seed", SEED, *graph)
    by_torch = generate(tmp_path, PROMPT, "--seed", SEED)
    with Server(site) as server:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        foreign: list[str] = []
        page.on("request", lambda r: foreign.append(r.url) if not _own(r.url, server.url) else None)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        page.goto(server.url)
        page.wait_for_selector(SHOWN, timeout=120_000)
        paint(page, PROMPT, SEED)
        pixels = painted(page)
        print(
            f"page: {np.abs(pixels - by_graph).max()}/255 from generate --graph, "
            f"{np.abs(pixels - by_torch).max()}/255 from generate"
        )
        assert np.abs(pixels - by_graph).max() <= 2
        assert np.abs(pixels - by_torch).max() <= 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        with page.expect_download() as download:
            page.click("#save")
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        assert saved.name == f"a-gift-and-a-boat-on-a-pink-background_{SEED}.png"
        with Image.open(saved) as image:
            assert np.array_equal(np.asarray(image, int), pixels)
        again = generate(tmp_path, "--like", saved)
        assert np.abs(again - pixels).max() <= 2
        page.close()
    assert not foreign and not errors


def test_it_works_offline_and_with_threads(site: Path, browser: Any) -> None:
    """After the first visit; the page's own service worker gives the headers threads need."""
    page = browser.new_page()
    with Server(site) as server:
        page.goto(server.url)
        page.wait_for_selector(SHOWN, timeout=120_000)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        first = painted(page)
    page.reload()  # nobody listens any more
    page.wait_for_selector(SHOWN, timeout=120_000)
    assert np.abs(painted(page) - first).max() <= 2
    assert page.evaluate("crossOriginIsolated")
    assert (
        "threads" in page.inner_text("#about")
        or page.evaluate("navigator.hardwareConcurrency") == 1
    )
    paint(page, "a fox on a red background", 3)
    page.close()


@pytest.mark.parametrize("lacking", [NO_SIMD, NO_WASM])
def test_a_browser_without_simd_is_told_so(site: Path, browser: Any, lacking: str) -> None:
    page = browser.new_page()
    page.add_init_script(lacking)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    with Server(site) as server:
        page.goto(server.url)
        page.wait_for_selector("#status.error")
        line = page.inner_text("#status")
    assert line.startswith("This browser lacks WebAssembly SIMD: use ") and "\n" not in line
    assert not page.is_visible("#bar") and page.is_disabled("#save")
    assert not any(url.endswith((".onnx", ".wasm")) for url in asked)  # nothing large for nothing
    page.close()


def test_a_page_with_parts_missing_or_unknown(site: Path, browser: Any, tmp_path: Path) -> None:
    known = json.loads((site / "student.json").read_text(encoding="utf-8"))
    newer = json.dumps({**known, "about": {**known["about"], "format": 2}})
    for name, content, expected in (
        ("student.onnx", None, "student.onnx cannot be loaded: check the connection and reload"),
        ("student.json", newer, "The student has format 2 and this page reads 1: write the page "),
    ):
        broken = tmp_path / name
        shutil.copytree(site, broken)
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_text(content, encoding="utf-8")
        page = browser.new_page()
        with Server(broken) as server:
            page.goto(server.url)
            page.wait_for_selector("#status.error", timeout=60_000)
            line = page.inner_text("#status")
        assert line.startswith(expected) and "\n" not in line
        page.close()


def test_a_seed_that_is_none_is_told_so(site: Path, browser: Any) -> None:
    page = browser.new_page()
    with Server(site) as server:
        page.goto(server.url)
        page.wait_for_selector(SHOWN, timeout=120_000)
        for wrong in ("seven", "-1", "1.5", "1" * 16, ""):
            page.evaluate("seed.maxLength = 99")
            page.fill("#seed", wrong)
            page.wait_for_selector("#status.error")
            assert page.inner_text("#status") == "The seed is a whole number of up to 15 digits."
            assert page.get_attribute("#picture", "data-seed") == "0"
        paint(page, "a cat", 12)
        assert "ms" in page.inner_text("#status")
    page.close()


def _own(address: str, url: str) -> bool:
    return address.startswith((url, "blob:", "data:"))
