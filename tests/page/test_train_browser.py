"""The Train tab by clicks in a real Chromium: `pytest -m slow tests/page/test_train_browser.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from served import DESK, SLOW, png_of, served, shown, tiue

pytestmark = pytest.mark.slow
PROMPT = "a zorb on a blue background"
TRAINED = 600_000  # ms; six updates, and the pictures that hold the rest in place before them


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    return tmp_path / "loras"


@pytest.fixture
def page(one_browser: Any, loras: Path) -> Iterator[Any]:
    with served("--train", str(loras)) as (url, _):
        page = one_browser.new_page(viewport=DESK)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(url, timeout=SLOW)
        yield page
        page.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Three pictures with captions: a violet ring on one colour each."""
    files = []
    for number, colour in enumerate(("red", "yellow", "green")):
        image = Image.new("RGB", (128, 128), colour)
        ImageDraw.Draw(image).ellipse((30, 30, 98, 98), outline="indigo", width=14)
        image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a zorb on a {colour} background")
        files += [str(tmp_path / f"{number}{suffix}") for suffix in (".png", ".txt")]
    return files


def test_a_lora_is_trained_by_clicks_and_painted_with(
    page: Any, pictures: list[str], loras: Path, tmp_path: Path
) -> None:
    page.get_by_role("tab", name="Train").click()
    page.set_input_files("#tiue-pictures input[type=file]", pictures)
    page.wait_for_selector("#tiue-pictures [aria-label='2.txt']", timeout=SLOW)
    page.get_by_label("Name of the LoRA").fill("Ring")
    page.get_by_label("Trigger word").fill("zorb")
    page.get_by_role("button", name="Settings").first.click()  # the last is Gradio's own
    page.get_by_label("Updates of the teacher").fill("6")
    page.get_by_label("Updates of the teacher").blur()
    page.click("#tiue-train")
    page.wait_for_selector("#tiue-training:has-text('is written')", timeout=TRAINED)
    page.wait_for_function("document.querySelector('.vega-embed canvas, .vega-embed svg')")
    _screenshot(page, "train")
    file = loras / "ring.safetensors"
    assert any(tensor.any() for name, tensor in load_file(file).items() if "lora_up" in name)
    with page.expect_download() as saved:
        page.locator("#tiue-lora").click()
    assert Path(saved.value.path()).read_bytes() == file.read_bytes()

    page.get_by_role("tab", name="Live").click()
    page.fill("#tiue-prompt textarea", PROMPT)
    plain = png_of(shown(page, PROMPT, 0))
    page.get_by_role("button", name="Student, size, negative prompt").click()
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name="ring").click()
    page.wait_for_function(
        "before => document.querySelector('#tiue-picture img')?.src !== before",
        arg=page.locator("#tiue-picture img").get_attribute("src"),
        timeout=SLOW,
    )
    with_lora = png_of(shown(page, PROMPT, 0))
    _screenshot(page, "trained")
    ended = tiue(
        "generate", PROMPT, "--seed", "0", "--lora", str(file), "--out", str(tmp_path), "--json"
    )
    (made,) = json.loads(ended.stdout)["images"]
    assert with_lora == Path(made["path"]).read_bytes() != plain
    assert not page.wrong


def test_what_is_missing_is_said(page: Any, pictures: list[str]) -> None:
    page.get_by_role("tab", name="Train").click()
    page.click("#tiue-train")
    page.wait_for_selector(".toast-body:has-text('there are no pictures')", timeout=SLOW)
    assert page.locator("#tiue-train").is_enabled()


def _screenshot(page: Any, name: str) -> None:
    """To `$TIUE_SCREENSHOTS`, to be looked at."""
    if folder := os.environ.get("TIUE_SCREENSHOTS"):
        page.wait_for_timeout(700)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
