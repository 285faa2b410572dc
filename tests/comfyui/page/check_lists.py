"""The editor of Prompt List on the real page: bad rows are marked, told, and found by a click.

Run beside check_page.py, with the same settings.
"""

from __future__ import annotations

import os
from pathlib import Path

from check_page import FIT, OPEN, page, queue_and_wait  # noqa: F401 - page is a fixture

LIST = "a cat on a blue background --seed 1\na dog --seed x\n# a comment\na {gift|boat\na star\n"
AREA = "textarea[data-tiue=list]"
ROWS = ".tiue-list button"


def test_bad_rows_are_marked_while_typing(page):  # noqa: F811
    page.evaluate(OPEN, "prompt-list")
    page.keyboard.press("Escape")
    page.evaluate(FIT)
    area = page.locator(AREA)
    area.wait_for()
    area.fill(LIST)
    page.wait_for_function(f"document.querySelectorAll('{ROWS}').length === 2")
    assert area.get_attribute("data-bad-lines") == "2,4"
    told = page.locator(ROWS).all_inner_texts()
    assert told[0].startswith("line 2, seed: 'x' is no seed: give a whole number")
    assert told[1].startswith("line 4, prompt: a brace { is not closed")
    assert page.locator(".tiue-list output").nth(1).inner_text() == "2 pictures, 2 bad rows"
    marks = area.evaluate("(area) => getComputedStyle(area).backgroundImage.split('),').length")
    assert marks >= 2
    folder = os.environ.get("TIUE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(folder) / "prompt-list-editor.jpg"), type="jpeg", quality=82)

    page.locator(ROWS).nth(1).click()
    selected = "(area) => area.value.slice(area.selectionStart, area.selectionEnd)"
    assert area.evaluate(selected) == "a {gift|boat"

    area.fill(LIST.replace("seed x", "seed 2").replace("boat", "boat}"))
    page.wait_for_function(f"document.querySelectorAll('{ROWS}').length === 0")
    assert area.get_attribute("data-bad-lines") == ""


def test_a_run_tells_what_it_made(page):  # noqa: F811
    page.evaluate(OPEN, "prompt-list")
    page.evaluate(FIT)
    set_folder = """() => { app.graph._nodes.find((node) => node.type === 'TiUEPromptList')
        .widgets.find((widget) => widget.name === 'folder').value = `page-${Date.now()}`; }"""
    page.evaluate(set_folder)
    shown = "document.querySelector('.tiue-list output').textContent"
    for expected in ("0 there before, 5 painted in this run", "5 there before, 0 painted"):
        assert queue_and_wait(page)["how"] == "success"
        page.wait_for_function(f"{shown}.startsWith({expected!r})")
    images = """() => app.graph._nodes.find((node) => node.type === 'TiUESaveBatch')"""
    assert page.evaluate(f"({images})().comfyClass") == "TiUESaveBatch"
    folder = os.environ.get("TIUE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / "prompt-list-run.jpg"), type="jpeg", quality=82)
