"""Pictures of every tab for docs/page.md: light, dark, and as wide as a phone.

python tests/page/screenshots.py docs/page
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from served import DESK, PHONE, SLOW, browser, served, settled, shown

PROMPT = "a gift and a boat on a pink background"
MODES = {"light": (DESK, "light"), "dark": (DESK, "dark"), "phone": (PHONE, "light")}


def live(page):
    page.fill("#tiue-prompt textarea", PROMPT)
    shown(page, PROMPT)
    page.wait_for_function(
        "document.querySelectorAll('#tiue-variations button').length == 4", timeout=SLOW
    )
    settled(page, "#tiue-variations")


def inside(page):
    page.get_by_role("tab", name="Inside").click()
    page.get_by_role("button", name="Look inside").click()
    page.wait_for_selector("#tiue-features img", timeout=SLOW)


def lists(page):
    page.get_by_role("tab", name="Lists").click()
    page.wait_for_selector(".tiue-bad", timeout=SLOW)
    page.click("#tiue-make")
    page.wait_for_selector("#tiue-progress:has-text('3 made')", timeout=SLOW)
    page.wait_for_function(
        "document.querySelectorAll('#tiue-gallery img').length >= 3", timeout=SLOW
    )


def compare(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare").last.click()
    page.wait_for_selector("#tiue-compare img", timeout=SLOW)


TABS = {"live": live, "inside": inside, "lists": lists, "compare": compare}


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with served() as (url, _), sync_playwright() as driver, browser(driver) as one:
        for mode, (size, scheme) in MODES.items():
            page = one.new_page(viewport=size, color_scheme=scheme)
            page.goto(f"{url}/?__theme={scheme}", timeout=SLOW)
            for name, show in TABS.items():
                show(page)
                page.wait_for_timeout(700)
                page.evaluate("window.scrollTo(0, 0)")
                path = folder / f"{name}-{mode}.png"
                page.screenshot(path=path, full_page=True)
                _shrink(path)
                print(path, flush=True)
            page.close()


def _shrink(path: Path) -> None:
    """Half the pixels and 128 colours: enough to see a page by."""
    with Image.open(path) as image:
        size = image.size
        if size[0] > 1000:
            image = image.resize((size[0] * 5 // 8, size[1] * 5 // 8), Image.Resampling.LANCZOS)
        image.convert("RGB").quantize(160).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/page"))
