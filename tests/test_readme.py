"""Every block of the README, pasted in order into a shell in a fresh clone.

What takes hours or a download is held as far as a minute allows: its options are parsed (`-h` is
appended), its files are there; a download asks for its licence first.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL = ("python3", ".", "pip", "tiue", "printf", "mkdir", "accelerate", "scripts/test")
LONG = ("tiue lora", "tiue distill", "tiue evaluate", "tiue bench")


def blocks() -> list[tuple[str, str]]:
    """(kind, text) of the code blocks: "python", or "shell" for indented lines."""
    found, text = [], (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"^```python\n(.*?)^```|((?:^    \S[^\n]*\n)+)"
    for match in re.finditer(pattern, text, re.M | re.S):
        if match[1]:
            found.append(("python", match[1]))
        else:
            lines = "\n".join(line.strip() for line in match[2].splitlines())
            if lines.split()[0] in SHELL:
                found.append(("shell", lines))
    return found


def is_long(line: str) -> bool:
    words = shlex.split(line, comments=True)
    return " ".join(words[:2]) in LONG or "--system" in words or "--lora" in words


def test_the_blocks_are_found() -> None:
    kinds = [kind for kind, _ in blocks()]
    assert kinds.count("python") >= 2 and kinds.count("shell") >= 10
    assert blocks()[0][1].startswith("python3 -m venv")


@pytest.mark.slow
def test_every_block_works_in_a_fresh_folder(tmp_path: Path) -> None:
    clone, home = tmp_path / "tiue", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("TIUE_", "VIRTUAL_ENV"))},
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "HF_HUB_OFFLINE": "1",
        "TIUE_BACKGROUND": "0",  # graphs for the next picture: nobody waits for them here
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # What the project depends on is borrowed from here; the project itself is installed.
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def paste(text: str) -> subprocess.CompletedProcess:
        venv = ". .venv/bin/activate; " if (clone / ".venv").is_dir() else ""
        return subprocess.run(
            ["bash", "-c", f"set -e; {venv}{text}"],
            cwd=clone, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    python = ""
    for kind, text in blocks():
        if kind == "python":
            python += text
            (clone / "pasted.py").write_text(python)
            ended = paste("python pasted.py")
            assert ended.returncode == 0, ended.stderr
            continue
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("tiue app") and "--static" not in line:
                assert paste("\n".join(lines)).returncode == 0
                lines = []
                _page_opens(clone, environment)
            elif "loopfree" in line:
                ended = paste(line)
                assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
            elif "--static" in line:
                lines.append(line.partition("&&")[0].strip() + " -h")
            elif line.startswith("accelerate"):
                assert (clone / line.split()[-1]).is_file(), line
            elif line.startswith("scripts/"):
                assert os.access(clone / line.split()[0], os.X_OK)
            elif is_long(line):
                command, recipe = line.partition(" #")[0].rstrip(), re.search(r"\S+\.yaml", line)
                assert recipe is None or (clone / recipe[0]).is_file(), line
                lines.append(f"{command} -h > /dev/null")
            else:
                lines.append(line)
        ended = paste("\n".join(lines))
        assert ended.returncode == 0, f"{text}\n{ended.stdout}{ended.stderr}"
    assert len(list((clone / "out").glob("*.png"))) >= 5
    assert (clone / "pictures" / "index.html").is_file()


def _page_opens(clone: Path, environment: dict[str, str]) -> None:
    page = subprocess.Popen(
        ["bash", "-c", ". .venv/bin/activate; exec tiue app --port 0"],
        cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert page.stdout is not None
    said, end = "", time.monotonic() + 120
    while "http://127.0.0.1" not in said and time.monotonic() < end and page.poll() is None:
        said += page.stdout.readline()
    page.terminate()  # Ctrl-C is not heard where the tests run in the background
    page.wait(30)
    assert "http://127.0.0.1" in said, said
