"""A host of the project, ComfyUI or a WebUI: where its checkout is, and a real server of it.

A checkout: at ``$NAME_PATH``, then where people put it. Its Python: ``$NAME_PYTHON``, then a
``venv`` or ``.venv`` inside (or beside), then the one that runs the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_LIMIT, RUN_LIMIT = 600, 1800  # s; generous, for machines that do other things too


@dataclass(frozen=True)
class Checkout:
    """A host's sources and the Python that can run them."""

    path: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        # A log is of use while it is written.
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

    @classmethod
    def at(cls, name: str, usual: str, marks: tuple[str, ...], *, beside: bool = False) -> Any:
        """The checkout of host `name` if all `marks` are in it, else None."""
        path = Path(os.environ.get(f"{name}_PATH") or usual).expanduser()
        if not all((path / mark).exists() for mark in marks):
            return None
        folders = (path, path.parent) if beside else (path,)
        tails = ("bin/python", "Scripts/python.exe")
        pythons = [
            each / venv / tail for each in folders for venv in ("venv", ".venv") for tail in tails
        ]
        found = next((str(python) for python in pythons if python.is_file()), sys.executable)
        return cls(path, os.environ.get(f"{name}_PYTHON") or found)


class Refused(Exception):
    """The server answered with an error; the text is what it said."""


class HostServer:
    """A server on a port of its own with a scratch folder; start it with ``with``."""

    ready: str  # answers once the server runs
    seconds: float  # that it took to start

    def __init__(self, host: Checkout, base: Path) -> None:
        self.host, self.base = host, base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = host.environment

    def command(self) -> list[str]:
        """What starts it, in the checkout's folder."""
        raise NotImplementedError

    def started(self) -> bool:
        """Whether it may be asked; before, some hosts' start fails of being asked."""
        return True

    def __enter__(self) -> Any:
        began = time.monotonic()
        with (self.base / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.host.path,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        while time.monotonic() - began < START_LIMIT and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if self.started():
                    self.read(self.ready)
                    self.seconds = time.monotonic() - began
                    return self
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"{self.host.path} did not start:\n{self.log[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # --- HTTP ------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def post(self, path: str, content: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=RUN_LIMIT) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None

    # --- the process -----------------------------------------------------------------------

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def clock(self) -> float:
        """Seconds of CPU time the server has used; other processes do not slow it."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
