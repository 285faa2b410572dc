"""Accessibility: axe on every tab, light and dark, desktop and phone: `pytest -m slow tests/page`.

What is serious or critical fails, unless it lies inside a part that Gradio draws and we cannot
reach; those are named below, each with the rule it breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import DESK, PHONE, SLOW, served, shown

pytestmark = pytest.mark.slow
TABS = ("Live", "Inside", "Lists", "Compare", "Train")
GRADIOS = {("aria-prohibited-attr", 'aria-label="Empty value"')}  # (rule, part of the HTML)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served("--train", str(tmp_path_factory.mktemp("loras"))) as (url, _):
        yield url


def violations(page: Any) -> list[str]:
    """Serious and critical ones that are ours, one line each."""
    package = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    lines = []
    for rule in found:
        if rule["impact"] not in ("serious", "critical"):
            continue
        for node in rule["nodes"]:
            where = " ".join(map(str, node["target"]))
            if not any(rule["id"] == id and part in node["html"] for id, part in GRADIOS):
                lines.append(f"{rule['id']}: {where}: {node['html'][:160]}")
    return lines


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_violation(one_browser: Any, address: str, theme: str, size: Any) -> None:
    page = one_browser.new_page(viewport=size, color_scheme=theme)
    page.goto(f"{address}/?__theme={theme}", timeout=SLOW)
    shown(page, "a cat on a blue background")
    page.wait_for_function(
        "document.querySelectorAll('#tiue-variations button').length == 4", timeout=SLOW
    )
    page.locator("button", has_text="Student, size, negative prompt").click()
    found = {}
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        if name == "Lists":
            page.wait_for_selector("tr.tiue-bad", timeout=SLOW)
        elif name == "Inside":
            page.get_by_role("button", name="Look inside").click()
            page.wait_for_selector("#tiue-features img", timeout=SLOW)
        elif name == "Compare":
            page.get_by_role("button", name="Compare").last.click()
            page.wait_for_selector("#tiue-compare img", timeout=SLOW)
        page.wait_for_timeout(500)
        found[name] = violations(page)
    page.close()
    assert not any(found.values()), "\n".join(f"{n}: {x}" for n, xs in found.items() for x in xs)
