"""Forge's real page in a real browser: a newcomer's first picture, the accordion, Reload UI.

With $TIUE_SCREENSHOTS it leaves pictures there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forge_server import NAME, ROOT, Server
from safetensors.torch import load_file

from tiue_core.cli import main
from tiue_core.students.checkpoint import read_made

BUILT_IN = ROOT / "tiue_core" / "stickers" / "student"
SLOW = 300_000  # ms; for machines that do other things too
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
    """Click, and wait for the picture and a text that is not the last one's: seconds."""
    before = page.locator("#html_info_txt2img").inner_text()
    began = time.monotonic()
    page.click("#txt2img_generate")
    page.wait_for_function(
        """before => {
            const text = document.querySelector('#html_info_txt2img').innerText;
            const images = [...document.querySelectorAll('#txt2img_gallery img')];
            return text.includes('Seed:') && text !== before && images.some(i => i.naturalWidth);
        }""",
        arg=before,
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
    page.fill("#txt2img_prompt textarea", "a frog on a blue background")
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


def convert(page: Any, folder: Path | str, expected: str) -> str:
    page.locator("#tiue_folder textarea, #tiue_folder input").first.fill(str(folder))
    page.click("#tiue_convert")
    page.wait_for_function(
        f"document.querySelector('#tiue_said').innerText.includes({json.dumps(expected)})"
    )
    return page.locator("#tiue_said").inner_text()


def test_a_folder_is_converted_by_a_click(page: Any, server: Server, tmp_path: Path) -> None:
    """And chosen, as the page says; it is the file that the command writes, to the byte."""
    folder = tmp_path / "my-student"
    shutil.copytree(BUILT_IN, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "timesteps": [901, 451]}))
    open_accordion(page)
    said = convert(page, folder, "my-student")
    assert "press the refresh button beside Checkpoint" in said
    command = tmp_path / "command.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["export", "--to", "checkpoint", str(folder), "--out", str(command)])
    assert end.value.code == 0
    written = server.models / "Stable-diffusion" / "tiue" / "my-student.safetensors"
    ours, theirs = (load_file(file) for file in (written, command))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert read_made(written) == replace(read_made(command), name="my-student")
    assert "is there already: rename it, or the folder" in convert(page, folder, "already")

    page.click("#forge_refresh_checkpoint")
    page.wait_for_timeout(1000)
    checkpoint = page.locator(".model_selection input").first
    checkpoint.click()
    page.get_by_role("option", name="my-student").click()
    page.fill("#txt2img_prompt textarea", "a frog on a red background")
    page.click("#tiue_set_up")
    page.wait_for_function(f"document.querySelector('#txt2img_sampling input').value === '{NAME}'")
    generate(page)
    said = page.locator("#html_info_txt2img").inner_text()
    assert "Model: my-student" in said and "TiUE decoders: 2" in said


def test_infotext_pastes_back(page: Any) -> None:
    page.fill("#txt2img_prompt textarea", (
        f"a dog\nSteps: 8, Sampler: {NAME}, CFG scale: 1.5, Seed: 7, Size: 192x128, "
        "TiUE decoders: 8, TiUE speed: fast"
    ))  # fmt: skip
    page.click("#paste")
    page.wait_for_function("document.querySelector('#tiue_decoders input').value === '8'")
    assert value(page, "#txt2img_sampling") == NAME
    assert page.locator("#tiue_speed input:checked").input_value() == "fast"


def test_no_student_is_one_line_beside_the_button(page: Any) -> None:
    open_accordion(page)
    assert "does not exist: check the path" in convert(page, "/nowhere", "/nowhere")
    assert "no folder named" in convert(page, "", "no folder named")


@pytest.mark.parametrize("name", ["flux", "hires"])
def test_a_refusal_is_one_line_on_the_page(
    page: Any, server: Server, strangers: dict[str, str], name: str
) -> None:
    choose = "/sdapi/v1/options"
    if name == "flux":
        server.post(choose, {"sd_model_checkpoint": strangers["Flux"]})
        expected = "this model is Flux: choose a checkpoint of a student"
    else:
        page.check("#txt2img_hr-visible-checkbox")
        expected = "choose another Hires sampling method"
    page.click("#txt2img_generate")
    line = page.locator("#html_log_txt2img .error", has_text=expected)
    line.wait_for()  # the refusal of the picture before stands there until this one's comes
    said = line.inner_text()
    assert said.startswith("TiueError: ") and "\n" not in said.strip()
    if name == "flux":
        server.post(choose, {"sd_model_checkpoint": "tiue/stickers.safetensors"})
    else:
        page.uncheck("#txt2img_hr-visible-checkbox")
    server.paint()


def test_reload_ui_registers_nothing_twice(page: Any, server: Server) -> None:
    deadline = time.monotonic() + SLOW / 1000

    def told(line: str, times: int) -> None:
        while server.log.count(line) < times:
            assert time.monotonic() < deadline, f"no {line!r} in the log"
            page.wait_for_timeout(200)  # while this sleeps itself, no request of the page goes out

    ready = "Startup time:"
    told(ready, 1)
    page.evaluate("document.querySelector('#settings_restart_gradio').click()")  # in Settings
    told("Restarting UI...", 1)
    page.goto("about:blank")  # the old page would load itself anew, in the midst of it
    told(ready, 2)
    page.goto(server.url)
    page.wait_for_selector("#txt2img_generate")
    samplers = server.get("/sdapi/v1/samplers")
    assert [sampler["name"] for sampler in samplers].count(NAME) == 1
    scripts = server.get("/sdapi/v1/script-info")
    grid = next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    assert grid["args"][0]["choices"].count("[TiUE] Decoders") == 1
    assert page.locator("#tiue").count() == 1
    assert server.paint().latents.shape == (1, 4, 16, 16)
