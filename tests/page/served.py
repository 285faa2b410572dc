"""A page on loopback and a browser to look at it with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLOW = 120_000  # ms; for machines that do other things too
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


def chromium() -> str | None:
    """A Chromium: `$TIUE_CHROMIUM`, or Debian's, or Google's."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("TIUE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return found


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # A proxy for the world outside is none for loopback.
    loopback = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {**os.environ, **loopback, "PYTHONPATH": path}


def tiue(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    command = [sys.executable, "-m", "tiue_core", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`tiue app` as long as the block runs: its address and its process."""
    command = [sys.executable, "-m", "tiue_core", "app", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "tiue app ended before it told its address"
            text += line
        yield json.loads(text)["url"].rstrip("/"), process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def browser(driver: Any) -> Iterator[Any]:
    """A Chromium of a Playwright that was started."""
    one = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
    try:
        yield one
    finally:
        one.close()


def shown(page: Any, prompt: str, seed: int | None = None) -> Any:
    """Wait until the Live tab shows the picture of a prompt; its image element."""
    where = f"#tiue-picture img[data-prompt={json.dumps(prompt)}]"
    where += f'[data-seed="{seed}"]' if seed is not None else ""
    page.wait_for_selector(where, timeout=SLOW)
    return page.locator(where)


def png_of(image: Any) -> bytes:
    """The bytes behind an image element."""
    import base64

    url = image.get_attribute("src")
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


def sideways(page: Any) -> int:
    """Pixels that the page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def settled(page: Any, selector: str, seconds: float = 120) -> None:
    """Wait until something has been the same for a second."""
    before, since, end = None, time.monotonic(), time.monotonic() + seconds
    while time.monotonic() < end:
        now = page.locator(selector).inner_html()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > 1:
            return
        time.sleep(0.2)
    raise AssertionError(f"{selector} does not settle")
