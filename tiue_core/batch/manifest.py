"""`manifest.jsonl`: one line per picture, appended when its file has its name and never changed.

A line is written in one piece, so that several processes may append. A line that was cut off (the
disk was full, the power went) is passed over when the manifest is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import explain

FILE = "manifest.jsonl"


class State(IntFlag):
    """What is known of an id."""

    NONE = 0
    MADE = 1  # its file is there
    FAILED = 2  # it was tried, and there is no picture
    EARLIER = 4  # made from another version of the list
    SEEN = 8  # the list has it


class Manifest:
    """What a folder holds.

    Args:
        run: tells this version of the list from others; see `State.EARLIER`.
        suffix: of the pictures that count as made; default: any.

    Raises:
        TiueError: the manifest cannot be read, or is a file of somebody else's.
    """

    def __init__(self, folder: Path, run: str, suffix: str = "") -> None:
        self.path, self.folder, self.run = folder / FILE, folder, run
        # 16 bytes a picture, not its record: a list may be long
        self.states: dict[bytes, State] = {}
        self.broken = self.gone = 0
        for record in self.records():
            key, made = bytes.fromhex(record["id"]), record.get("status") == "made"
            if made and not record["file"].endswith(suffix):
                continue
            if made and not (folder / record["file"]).is_file():
                self.gone += 1
                self.states.pop(key, None)
                continue
            state = State.MADE if made else State.FAILED
            self.states[key] = state if record.get("run") == run else state | State.EARLIER
        if self.broken and not any(True for _ in self.records()) and not self._begun():
            raise TiueError(f"{self.path} is no manifest of pictures: choose another folder")

    def _begun(self) -> bool:
        """Whether the file begins as ours do: its only line may have been cut off."""
        begun = b'{"status": "'
        with self.path.open("rb") as file:
            return file.read(len(begun)).startswith(begun)

    def records(self) -> Iterator[dict[str, Any]]:
        """All whole lines, in the order they were written.

        Raises:
            TiueError: it is there and cannot be read.
        """
        return (record for _, record in self._lines())

    def made(self) -> Iterator[dict[str, Any]]:
        """The records of pictures that are there, each once, in the order of the list."""
        places: dict[bytes, tuple[int, int]] = {}  # index and place: the records stay on the disk
        for place, record in self._lines():
            if record.get("status") == "made" and (self.folder / record["file"]).is_file():
                index = record.get("index")
                key = bytes.fromhex(record["id"])
                places[key] = (index if isinstance(index, int) else 0, place)
        if places:
            with self.path.open("rb") as file:
                for _, place in sorted(places.values()):
                    file.seek(place)
                    yield json.loads(file.readline())

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.broken = place = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    start, place = place, place + len(line)
                    try:
                        record = json.loads(line)
                        if len(bytes.fromhex(record["id"])) != 16:
                            raise ValueError
                        if record.get("status") == "made":
                            _ = self.folder / record["file"]
                    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                        self.broken += bool(line.strip())
                        continue
                    yield start, record
        except FileNotFoundError:
            return
        except OSError as error:
            raise TiueError(f"{self.path} cannot be read ({error.strerror})") from error

    def state(self, job: str) -> State:
        return self.states.get(bytes.fromhex(job), State.NONE)

    def mark(self, job: str, state: State) -> None:
        self.states[bytes.fromhex(job)] = self.state(job) | state

    def unseen(self) -> int:
        """Pictures of which the list, gone through, had no row."""
        return sum(
            bool(state & State.MADE and not state & State.SEEN) for state in self.states.values()
        )

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, whole.

        Raises:
            TiueError: the disk is full, or the folder is gone.
        """
        line = json.dumps({**record, "run": self.run}, ensure_ascii=False) + "\n"
        data = line.encode("utf-8", "replace")
        try:
            # Opened anew each time: a folder that is gone is noticed, and not written to.
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.fstat(handle).st_size:
                    os.lseek(handle, -1, os.SEEK_END)
                    if os.read(handle, 1) != b"\n":
                        data = b"\n" + data  # after a line that was cut off
                if os.write(handle, data) != len(data):
                    raise OSError(28, "No space left on device")
            finally:
                os.close(handle)
        except OSError as error:
            check_there(self.folder)
            raise explain(error, self.path) from error
        made = record.get("status") == "made"
        self.states[bytes.fromhex(record["id"])] = (
            State.MADE if made else State.FAILED
        ) | State.SEEN


def check_there(folder: Path) -> None:
    """Raise TiueError if the folder of pictures is no longer there (a disk was unplugged)."""
    if not folder.is_dir():
        raise TiueError(f"{folder} is gone: bring it back and run again, it goes on from there")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder; the system lets go of it if this one is killed.

    Raises:
        TiueError: another run is at work there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".tiue-batch.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TiueError(f"another run is writing to {folder}: wait for it, or stop it") from None
    except OSError as error:
        raise explain(error, folder / FILE) from error
    try:
        yield
    finally:
        lock.release()
