"""Forge's real page in a real browser: a newcomer's first picture, the accordion, Reload UI.

With $TIUE_SCREENSHOTS it leaves pictures there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forge_server import NAME, Server

SLOW = 120_000  # ms; for machines that do other things too
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FOLDER = os.environ.get("TIUE_SCREENSHOTS")


@pytest.fixture(scope="module")
def page(server: Server, playwright_driver: Any) -> Iterator[Any]:
    found = os.environ.get("TIUE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, or $TIUE_CHROMIUM")
    browser = playwright_driver.chromium.launch(
        executable_path=found, args=["--no-sandbox", "--disable-gpu"]
    )
    page = browser.new_page(viewport={"width": 1500, "height": 1250})
    page.set_default_timeout(SLOW)
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    page.goto(server.url)
    page.wait_for_selector("#txt2img_generate")
    yield page
    browser.close()


def shot(page: Any, name: str) -> None:
    if FOLDER:
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(FOLDER) / f"{name}.jpg"), type="jpeg", quality=82)


def generate(page: Any) -> float:
    """Click, and wait for the picture: seconds."""
    began = time.monotonic()
    page.click("#txt2img_generate")
    page.wait_for_function(
        "document.querySelector('#html_info_txt2img').innerText.includes('Seed:') && "
        "[...document.querySelectorAll('#txt2img_gallery img')].some((i) => i.naturalWidth)"
    )
    return time.monotonic() - began


def value(page: Any, selector: str) -> str:
    return page.locator(f"{selector} input").first.input_value()


def open_accordion(page: Any) -> None:
    if not page.locator("#tiue_set_up").is_visible():
        page.locator("#tiue .label-wrap").first.click()
        page.wait_for_selector("#tiue_set_up")


def test_a_newcomers_picture(page: Any) -> None:
    """Nothing downloaded, nothing chosen: set up, a prompt, Generate."""
    page.fill("#txt2img_prompt textarea", "a cat on a blue background")
    open_accordion(page)
    page.click("#tiue_set_up")
    page.wait_for_function(f"document.querySelector('#txt2img_sampling input').value === '{NAME}'")
    assert value(page, "#txt2img_cfg_scale") == "1"
    assert (value(page, "#txt2img_width"), value(page, "#txt2img_height")) == ("128", "128")
    seconds = generate(page)
    print(f"from click to picture: {seconds:.1f} s")
    said = page.locator("#html_info_txt2img").inner_text()
    assert f"Sampler: {NAME}" in said and "TiUE decoders: 4" in said
    shot(page, "forge")


def test_infotext_pastes_back(page: Any) -> None:
    page.fill("#txt2img_prompt textarea", (
        f"a dog\nSteps: 8, Sampler: {NAME}, CFG scale: 1.5, Seed: 7, Size: 192x128, "
        "TiUE decoders: 8, TiUE speed: fast"
    ))  # fmt: skip
    page.click("#paste")
    page.wait_for_function("document.querySelector('#tiue_decoders input').value === '8'")
    assert value(page, "#txt2img_sampling") == NAME
    assert page.locator("#tiue_speed input:checked").input_value() == "fast"


def test_an_error_is_one_line_on_the_page(page: Any) -> None:
    page.locator("#tiue_folder textarea, #tiue_folder input").first.fill("/nowhere")
    page.click("#tiue_convert")
    page.wait_for_function("document.querySelector('#tiue_said').innerText.includes('/nowhere')")
    assert "does not exist: check the path" in page.locator("#tiue_said").inner_text()


def test_reload_ui_registers_nothing_twice(page: Any, server: Server) -> None:
    page.evaluate("document.querySelector('#settings_restart_gradio').click()")  # in Settings
    page.wait_for_timeout(2000)
    deadline = time.monotonic() + SLOW / 1000
    while time.monotonic() < deadline:
        try:
            page.goto(server.url)
            page.wait_for_selector("#txt2img_generate")
            samplers = server.get("/sdapi/v1/samplers")
            break
        except Exception:
            time.sleep(1)
    assert [sampler["name"] for sampler in samplers].count(NAME) == 1
    scripts = server.get("/sdapi/v1/script-info")
    grid = next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    assert grid["args"][0]["choices"].count("[TiUE] Decoders") == 1
    assert page.locator("#tiue").count() == 1
    assert server.paint().latents.shape == (1, 4, 16, 16)
