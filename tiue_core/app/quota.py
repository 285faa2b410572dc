"""How much one address may do in a while: bytes uploaded in an hour, guesses at the login."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_ADDRESSES = 10_000  # kept at once: the longest silent are forgotten first


class Quota:
    """Amounts of the last `seconds`, by address and in all.

    Args:
        each: of one address.
        total: of all addresses; None: without end.
    """

    def __init__(
        self,
        seconds: float,
        each: int,
        total: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.each, self.total, self.now = seconds, each, total, now
        self._taken: dict[str, deque[tuple[float, int]]] = {}

    def take(self, address: str, amount: int = 1) -> bool:
        """Whether this much was left; if so, it is taken."""
        self._forget()
        own = sum(size for _, size in self._taken.get(address, ()))
        everyone = sum(size for taken in self._taken.values() for _, size in taken)
        if own + amount > self.each:
            return False
        if self.total is not None and everyone + amount > self.total:
            return False
        while len(self._taken) >= _ADDRESSES and address not in self._taken:
            del self._taken[next(iter(self._taken))]
        taken = self._taken.pop(address, deque())
        taken.append((self.now(), amount))
        self._taken[address] = taken
        return True

    def give_back(self, address: str) -> None:
        """The last amount that an address took did not count."""
        if self._taken.get(address):
            self._taken[address].pop()

    def _forget(self) -> None:
        before = self.now() - self.seconds
        for address, taken in list(self._taken.items()):
            while taken and taken[0][0] <= before:
                taken.popleft()
            if not taken:
                del self._taken[address]
