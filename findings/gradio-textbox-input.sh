#!/usr/bin/env bash
# gradio 6.31.0: the event `input` of a Textbox ("when the user changes the value") is not heard
# where text comes by other ways than single keys: pasted, dictated, put there by an input method.
# `change` is; so is the `input` of a Number.
# Seen: after Ctrl+V of "blue", `input` was never called, `change` got "blue".
# It needs a Chromium ($CHROMIUM, or the one on the path).
set -euo pipefail
chromium=${CHROMIUM:-$(command -v chromium || command -v google-chrome)}
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "gradio==6.31.0" "playwright==1.55.0"
cd "$place"
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$place/gradio" HOME="$place"
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
"$place/env/bin/python" -W ignore - "$chromium" <<'P'
import sys

import gradio as gr
from playwright.sync_api import sync_playwright

print("gradio", gr.__version__)
given = {"input": [], "change": [], "number": []}
with gr.Blocks() as page:
    box = gr.Textbox(label="box")
    number = gr.Number(label="number")
    for name, event, part in (
        ("input", box.input, box), ("change", box.change, box), ("number", number.input, number),
    ):
        event(lambda value, name=name: given[name].append(value), [part], None)
_, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox"])
    view = browser.new_page(permissions=["clipboard-read", "clipboard-write"])
    view.goto(address)
    view.evaluate("navigator.clipboard.writeText('blue')")
    view.get_by_label("box").click()
    view.keyboard.press("Control+V")
    view.wait_for_timeout(5000)
    assert view.get_by_label("box").input_value() == "blue"
    print("pasted", given)
    pasted = list(given["input"])
    view.keyboard.type("!")
    view.get_by_label("number").fill("7")
    view.wait_for_timeout(5000)
    print("typed", given)
    browser.close()
page.close()
assert given["change"][0] == "blue" and given["number"][-1:] == [7]
assert pasted == [], "this has changed"
P
