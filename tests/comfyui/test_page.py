"""The real page in a real browser. The checks run in ComfyUI's Python, which has Playwright."""

from __future__ import annotations

import os
import shutil
import subprocess

from place import HERE, Comfy
from server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def test_page(comfy: Comfy, server: Server, skipped_loudly) -> None:
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        skipped_loudly("no Chromium ($CHROMIUM, or on the PATH) for the page")
    probe = [comfy.python, "-c", "import playwright"]
    if subprocess.run(probe, capture_output=True).returncode:
        skipped_loudly(f"no Playwright for the page: {comfy.python} -m pip install playwright")
    command = [comfy.python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["--override-ini", "addopts=", "--confcutdir", "."]
    command += ["check_page.py", "check_lists.py"]
    settings = {"TIUE_SERVER": server.url, "TIUE_CHROMIUM": str(browser)}
    result = subprocess.run(
        command,
        env={**comfy.environment, **settings},
        cwd=HERE / "page",
        capture_output=True,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
