"""The page's tests: without a browser they say so, in one loud line at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from served import browser, chromium, served

_missing: list[str] = []


def _skip(why: str) -> NoReturn:
    if why not in _missing:
        _missing.append(why)
    pytest.skip(why)


@pytest.fixture(scope="session", autouse=True)
def with_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        _skip("no Gradio: pip install 'tiue[app]'")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of `tiue app` with the built-in student.

    PyTorch paints, so that pictures can be held against the command line's byte by byte: by itself
    either takes the engine that is the fastest for what it has to do, and engines round apart.
    """
    with served("--engine", "torch") as (url, _):
        yield url


@pytest.fixture(scope="session")
def one_browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    if chromium() is None:
        _skip("no Chromium: apt-get install chromium, or $TIUE_CHROMIUM")
    with browser(request.getfixturevalue("playwright_driver")) as one:
        yield one


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for why in _missing:
        terminalreporter.write_line(f"PAGE NOT TESTED: {why}", red=True, bold=True)
