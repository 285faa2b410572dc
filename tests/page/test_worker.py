"""Who is next: turns, the latest text, and places that become free."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tiue_core.app.state import Limits
from tiue_core.app.worker import LeftError, SupersededError, Worker
from tiue_core.errors import TiueError


@pytest.fixture
def held():
    """A worker whose thread waits at a gate, so that a queue can be built behind it."""
    gate, entered, done = threading.Event(), threading.Event(), []
    worker = Worker("models", Limits(waiting=6, each=3))

    def hold(models: Any) -> None:
        entered.set()
        gate.wait(10)

    worker.submit("gatekeeper", hold)
    assert entered.wait(10)

    def ask(client: str, name: str, **options: Any) -> Any:
        return worker.submit(client, lambda models: done.append(name) or name, **options)

    yield worker, ask, gate, done
    gate.set()
    worker.close()


def test_clients_take_turns(held) -> None:
    _, ask, gate, done = held
    futures = [ask("a", name) for name in ("a1", "a2", "a3")]
    futures += [ask("b", "b1"), ask("c", "c1"), ask("b", "b2")]
    gate.set()
    assert [future.result(10) for future in futures] == ["a1", "a2", "a3", "b1", "c1", "b2"]
    assert done == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_the_latest_text_wins_and_no_one_elses_work_is_touched(held) -> None:
    _, ask, gate, done = held
    first = ask("a", "c", lane="live", replaces=("live",))
    theirs = ask("b", "b", lane="live", replaces=("live",))
    listed = ask("a", "list", lane="list")
    second = ask("a", "ca", lane="live", replaces=("live",))
    third = ask("a", "cat", lane="live", replaces=("live",))
    for old in (first, second):
        with pytest.raises(SupersededError):
            old.result(10)
    gate.set()
    assert {theirs.result(10), listed.result(10), third.result(10)} == {"b", "list", "cat"}
    assert done.index("cat") < done.index("list") and "c" not in done and "ca" not in done


def test_the_queue_is_bounded_and_a_client_that_leaves_frees_its_place(held) -> None:
    worker, ask, gate, done = held
    gone = [ask("a", f"a{i}") for i in range(3)]
    with pytest.raises(TiueError, match="3 things waiting"):
        ask("a", "too many of one")
    kept = [ask("b", f"b{i}") for i in range(3)]
    with pytest.raises(TiueError, match="too many are waiting"):
        ask("c", "too many in all")
    ask("a", "the newest", lane="live", replaces=("",))  # takes places, needs none
    for future in gone:
        with pytest.raises(SupersededError):
            future.result(10)
    worker.leave("a")
    fits = ask("c", "c")
    gate.set()
    assert [future.result(10) for future in [*kept, fits]] == ["b0", "b1", "b2", "c"]
    assert not any(name.startswith("a") or name == "the newest" for name in done)


def test_an_error_is_the_clients_own_and_the_worker_goes_on(held) -> None:
    worker, ask, gate, _ = held
    broken = worker.submit("a", lambda models: 1 // 0)
    fine = ask("a", "fine")
    gate.set()
    with pytest.raises(ZeroDivisionError):
        broken.result(10)
    assert fine.result(10) == "fine"


def test_closing_ends_what_waits(held) -> None:
    worker, ask, gate, _ = held
    waiting = ask("a", "a")
    threading.Timer(0.1, gate.set).start()
    worker.close()
    with pytest.raises(LeftError):
        waiting.result(10)
    with pytest.raises(LeftError):
        ask("a", "later")
