"""Pieces of HTML that the tabs share. All text from outside is escaped here.

Pictures are data URLs: the very PNG bytes, in no folder of the server, fetched by nobody else.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from .paint import Picture

PARTS = ("text", "encoder", "decoders", "VAE")  # of the time a picture takes
#: Of Gradio's events: no spinner and no endpoint, ...
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
INSTANT: dict[str, Any] = {**QUIET, "queue": False}  #: ... beside the queue, ...
WORKING: dict[str, Any] = {**QUIET, "concurrency_limit": None}  #: ... by turns of the worker's own


def freed(running: Any, start: gr.Button, stop: gr.Button) -> Any:
    """The event, whose failure leaves the buttons as they were before it."""
    running.failure(
        lambda: (gr.Button(interactive=True), gr.Button(interactive=False)),
        None,
        [start, stop],
        **INSTANT,
    )
    return running


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def png_of(image: Any) -> bytes:
    """A PIL image that is not an order's: without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def figure(picture: Picture, buttons: str = "") -> str:
    """The picture, with the prompt for those who cannot see it, and a link that saves it.

    Args:
        buttons: HTML that comes after the link, such as `BUTTONS`, which `page.js` hears.
    """
    order, url = picture.order, data_url(picture.png)
    alt = f"Picture of: {order.prompt or 'the empty prompt'}"
    return (
        f'<figure class="tiue-picture"><img src="{url}" alt="{escape(alt)}" '
        f'width="{order.width}" height="{order.height}" data-prompt="{escape(order.prompt)}" '
        f'data-seed="{order.seed}" data-settings="{escape(json.dumps(order.settings()))}">'
        f"<figcaption>{order.width} × {order.height}, seed {order.seed} "
        f'· <a href="{url}" download="{escape(picture.file)}">Save PNG</a>{buttons}'
        "</figcaption></figure>"
    )


BUTTONS = "".join(
    f' · <button type="button" data-tiue="{what}">{text}</button>'
    for what, text in (("seed", "Copy seed"), ("link", "Copy link"), ("star", "☆ Favourite"))
)


def empty(text: str) -> str:
    return f'<div class="tiue-empty">{escape(text)}</div>'


def latency(picture: Picture) -> str:
    """How long each part took, as a bar and as words."""
    total = sum(picture.seconds.values())
    pieces, words = [], []
    for number, part in enumerate(PARTS):
        seconds = picture.seconds.get(part, 0.0)
        share = 100 * seconds / total if total else 0
        pieces.append(f'<span class="tiue-part{number}" style="width:{share:.2f}%"></span>')
        words.append(
            f'<li><i class="tiue-part{number}"></i>{part} <b>{1000 * seconds:.0f} ms</b></li>'
        )
    notes = "".join(f'<p class="tiue-note">{escape(note)}</p>' for note in picture.notes)
    return (
        f'<div class="tiue-latency" data-ms="{1000 * total:.1f}">'
        f'<div class="tiue-bar" aria-hidden="true">{"".join(pieces)}</div>'
        f"<ul>{''.join(words)}<li>in all <b>{1000 * total:.0f} ms</b></li></ul>{notes}</div>"
    )


def strip(pictures: Iterable[Picture]) -> str:
    """Small pictures that are buttons: a click takes its seed. See `STRIP_SCRIPT`."""
    buttons = [
        f'<button type="button" data-seed="{picture.order.seed}" '
        f'aria-label="Take seed {picture.order.seed}">'
        f'<img src="{data_url(picture.png)}" alt=""><span>{picture.order.seed}</span></button>'
        for picture in pictures
    ]
    return f'<div class="tiue-strip">{"".join(buttons)}</div>'


STRIP_SCRIPT = """element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-seed]');
    if (button) trigger('select', { seed: button.dataset.seed });
});
// The pictures are replaced while they are painted: the focus stays at its place in the row.
let place = -1;
element.addEventListener('focusin', (event) => {
    place = [...element.querySelectorAll('button')].indexOf(event.target);
});
element.addEventListener('focusout', (event) => { if (event.relatedTarget) place = -1; });
new MutationObserver(() => {
    const button = element.querySelectorAll('button')[place];
    if (button && document.activeElement === document.body) button.focus({ preventScroll: true });
}).observe(element, { childList: true, subtree: true });"""

PAST = """<div class="tiue-past">
<label class="tiue-drop"><input type="file" accept="image/png">
<span>Drop a picture that was saved here, or choose one: its settings come back.</span></label>
<h2>History</h2>
<label class="tiue-keep"><input type="checkbox" checked>
<span>Keep a history (in this browser only; off erases it)</span></label>
<ul class="tiue-grid"></ul><p role="status" class="tiue-note"></p></div>"""


def gallery(items: Iterable[tuple[str, str]], pixelated: bool = False) -> str:
    """(data URL, caption) pairs as a row that wraps."""
    kind = "tiue-row tiue-pixels" if pixelated else "tiue-row"
    figures = [
        f'<figure><img src="{url}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for url, text in items
    ]
    return f'<div class="{kind}">{"".join(figures)}</div>'


def bars(rows: Sequence[tuple[str, float, float]], caption: str) -> str:
    """Label, value and share (0 to 1) of each row as a bar plot that is also a table."""
    lines = [
        f'<tr><th scope="row">{escape(label)}</th><td class="tiue-track">'
        f'<span style="width:{100 * min(abs(share), 1):.2f}%"></span></td>'
        f"<td>{value:+.4f}</td><td>{100 * share:.1f} %</td></tr>"
        for label, value, share in rows
    ]
    return (
        f'<table class="tiue-bars"><caption>{escape(caption)}</caption>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], caption: str) -> str:
    """A list's rows; one that has an `error` is marked."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for row in rows:
        cells = "".join(f"<td>{escape(str(row.get(column, '')))}</td>" for column in columns)
        bad = row.get("error")
        if bad:
            width = len(columns) - 1
            where = escape(str(row.get(columns[0], "")))
            cells = f'<td>{where}</td><td colspan="{width}">⚠ {escape(str(bad))}</td>'
        body.append(f"<tr{' class=tiue-bad' if bad else ''}>{cells}</tr>")
    return (
        f'<div class="tiue-table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def versus(left: Picture, right: Picture, names: tuple[str, str]) -> str:
    """Two pictures one over the other, and a slider between them, for mouse and arrow keys."""
    images = "".join(
        f'<img src="{data_url(picture.png)}" alt="{escape(f"{name}: {picture.order.prompt}")}" '
        f'data-seed="{picture.order.seed}">'
        for picture, name in zip((left, right), names, strict=True)
    )
    ratio = f"{left.order.width} / {left.order.height}"
    return (
        f'<div class="tiue-versus" style="--at:50%"><div class="tiue-over" '
        f'style="aspect-ratio:{ratio}">{images}<i></i></div>'
        f'<label><span>{escape(names[0])}</span><input type="range" min="0" max="100" value="50" '
        'aria-label="How much of the left picture is shown" '
        "oninput=\"this.closest('.tiue-versus').style.setProperty('--at', this.value + '%')\">"
        f"<span>{escape(names[1])}</span></label></div>"
    )
