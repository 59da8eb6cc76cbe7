"""How much of what has to be refused a front-end may send before it is served more slowly.

A device shares its process, and Python's one lock, with others: a front-end that sends nothing but nonsense would take their
time. What is right costs nothing.
"""

from __future__ import annotations

import time
from typing import Final

BURST: Final = 1000
"""Refusals that may come at once."""
PER_SECOND: Final = 1000
"""Refusals a second that may come for ever."""
AT_ONCE: Final = 16
"""Refusals between one rest and the next: to wake up costs the others more than to refuse."""
BROKEN: Final = 32
"""What a ring that was broken costs when it is stopped, in refusals: to set it up and to break it off takes as long."""


class Patience:
    """The credit of one front-end."""

    def __init__(self) -> None:
        self._credit: float = BURST
        self._then = time.monotonic()

    def spend(self, refusals: int = 1) -> None:
        """So much was refused."""
        self._refill()
        self._credit -= refusals

    def rest(self) -> float:
        """The seconds for which nothing more of this front-end should be looked at now; 0 as long as there is credit."""
        if self._credit > 0:
            return 0.0
        self._refill()
        return max(0.0, AT_ONCE - self._credit) / PER_SECOND

    def _refill(self) -> None:
        now = time.monotonic()
        self._credit = min(float(BURST), self._credit + (now - self._then) * PER_SECOND)
        self._then = now
