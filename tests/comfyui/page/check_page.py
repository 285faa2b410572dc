"""The real page in a real browser: templates, pictures on nodes, live mode.

Run by test_page.py in ComfyUI's Python, with $TIUE_SERVER and $TIUE_CHROMIUM; with
$TIUE_SCREENSHOTS it leaves a picture of every template there.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

URL = os.environ["TIUE_SERVER"]
FOLDER = os.environ.get("TIUE_SCREENSHOTS")
SLOW = 1_800_000 if FOLDER else 300_000  # ms; for machines that do other things too
WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[3] / "workflows").glob("*.json"))
READY = (
    "window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"
)

SETTINGS = {
    # Without these the first visit opens a dialog over the graph.
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    # As they are by default. On a first visit the page of 0.3.64 sets them before it knows them,
    # and stumbles over that; this is no error of the pack's.
    "Comfy.Canvas.LeftMouseClickBehavior": "panning",
    "Comfy.Canvas.MouseWheelScroll": "zoom",
}

# The page's own messages, kept so that a test can wait for one that may have come already.
LISTEN = """() => {
    window.tiueEnds = [];
    for (const how of ['success', 'error', 'interrupted'])
        app.api.addEventListener(`execution_${how}`, ({ detail }) =>
            window.tiueEnds.push({ how, id: detail.prompt_id, detail }));
}"""
OPEN = """async (name) => {
    const answer = await fetch(`/api/workflow_templates/tiue/${name}.json`);
    const workflow = await answer.json();
    await app.loadGraphData(workflow, true, true, name);
    const nodes = app.graph._nodes;
    return {
        missing: nodes.map((node) => node.type)
            .filter((type) => !LiteGraph.registered_node_types[type]),
        loose: workflow.links.length - Object.values(
            app.graph.links instanceof Map ? Object.fromEntries(app.graph.links) : app.graph.links
        ).length,
        count: nodes.length,
        expected: workflow.nodes.length,
    };
}"""
FIT = """() => {
    const dialog = document.querySelector('.p-dialog-close-button');
    dialog?.click();
    const boxes = app.graph._nodes.map((node) => node.getBounding());
    const left = Math.min(...boxes.map((box) => box[0]));
    const top = Math.min(...boxes.map((box) => box[1]));
    const right = Math.max(...boxes.map((box) => box[0] + box[2]));
    const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
    const canvas = app.canvas, ds = canvas.ds, view = canvas.canvas.getBoundingClientRect();
    const fitting = [(view.width - 160) / (right - left), (view.height - 140) / (bottom - top), 1];
    ds.scale = Math.min(...fitting);
    ds.offset[0] = -left + 100 / ds.scale;
    ds.offset[1] = -top + 70 / ds.scale;
    canvas.setDirty(true, true);
}"""
PICTURES = """() => app.graph._nodes
    .filter((node) => ['SaveImage', 'PreviewImage', 'TiUEFeatureAtlas', 'TiUESaveBatch']
        .includes(node.type))
    .map((node) => ({ type: node.type, count: node.imgs?.length ?? 0,
        wide: node.imgs?.[0]?.naturalWidth ?? 0, src: node.imgs?.[0]?.src ?? '' }))"""

# Training with two updates: what is looked at is the page. A screenshot shows the whole.
BRIEFLY = """() => {
    for (const node of app.graph._nodes.filter((node) => node.type === 'TiUETrainLora'))
        for (const widget of node.widgets)
            widget.value = { steps: 2, batch_size: 1 }[widget.name] ?? widget.value;
}"""


@pytest.fixture(scope="module")
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ["TIUE_CHROMIUM"], args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(SLOW)
        page.tiue_errors = []
        page.on("pageerror", lambda error: page.tiue_errors.append(error.stack or str(error)))
        request = urllib.request.Request(f"{URL}/settings", json.dumps(SETTINGS).encode())
        urllib.request.urlopen(request).close()
        page.goto(URL)
        page.wait_for_function(READY)
        page.evaluate(LISTEN)
        page.keyboard.press("Escape")
        yield page
        browser.close()


def queue_and_wait(page: Page) -> dict:
    count = page.evaluate("tiueEnds.length")
    page.evaluate("() => { app.queuePrompt(0, 1) }")
    page.wait_for_function(f"tiueEnds.length > {count}")
    return page.evaluate("tiueEnds.at(-1)")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_template_opens_runs_and_shows_its_pictures(page, name):
    opened = page.evaluate(OPEN, name)
    assert opened["missing"] == [] and opened["loose"] == 0
    assert opened["count"] == opened["expected"]
    page.keyboard.press("Escape")
    page.evaluate(FIT)  # a node out of sight does not load its pictures
    if not FOLDER:
        page.evaluate(BRIEFLY)
    end = queue_and_wait(page)
    assert end["how"] == "success", end["detail"]
    page.wait_for_function(f"({PICTURES})().every((shown) => shown.wide > 0)")
    assert page.evaluate(PICTURES)
    if FOLDER:
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(FOLDER) / f"{name}.jpg"), type="jpeg", quality=82)


def history() -> list[dict]:
    with urllib.request.urlopen(f"{URL}/history") as answer:
        return list(json.load(answer).values())


def texts(entry: dict) -> list[str]:
    nodes = entry["prompt"][2].values()
    return [node["inputs"]["text"] for node in nodes if node["class_type"] == "CLIPTextEncode"]


def test_live_mode_runs_the_last_text_and_stops(page):
    page.evaluate(OPEN, "live-typing")
    page.evaluate(FIT)
    queue_and_wait(page)
    before = len(history())
    box = page.locator("textarea.comfy-multiline-input, textarea").first
    live = page.get_by_role("button", name="Live", exact=True).first

    box.fill("a cat")  # off by default: nothing runs
    page.wait_for_timeout(1000)
    assert len(history()) == before

    live.click()
    assert live.get_attribute("aria-pressed") == "true"
    shown = page.evaluate(PICTURES)[0]["src"]
    box.fill("")
    last = "a star on a green background"
    box.press_sequentially(last, delay=40)
    deadline = time.monotonic() + SLOW / 1000
    while not (len(history()) > before and last in texts(history()[-1])):
        assert time.monotonic() < deadline, [texts(entry) for entry in history()[before:]]
        page.wait_for_timeout(200)
    page.wait_for_function(f"({PICTURES})()[0].src !== {json.dumps(shown)}")

    runs = len(history())
    assert runs - before < len(last)  # not one per keystroke
    page.wait_for_timeout(3000)
    assert len(history()) == runs  # idle: nothing runs
    assert page.locator(".tiue-strip output").first.inner_text().endswith(" s")
    live.click()
    assert live.get_attribute("aria-pressed") == "false"


def test_pin_keeps_the_seed_of_the_picture(page):
    page.evaluate(OPEN, "text-to-image")
    page.evaluate(FIT)
    seeds = """() => Object.fromEntries(app.graph._nodes
        .find((node) => node.type === 'TiUEOnePassSampler').widgets
        .map((widget) => [widget.name, widget.value]))"""
    painted = page.evaluate(seeds)["seed"]
    assert queue_and_wait(page)["how"] == "success"
    page.wait_for_timeout(500)
    assert page.evaluate(seeds)["seed"] != painted  # it rolled on
    page.get_by_role("button", name="Pin seed").first.click()
    assert page.evaluate(seeds)["seed"] == painted
    assert page.evaluate(seeds)["control_after_generate"] == "fixed"


def test_no_error_on_the_page(page):
    assert page.tiue_errors == []
