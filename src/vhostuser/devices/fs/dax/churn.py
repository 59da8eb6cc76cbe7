"""A window that is too small for what a guest reads: what it needs makes room for other ranges, and has to come back soon.

Linux does not say what it needs, but it shows: into a window that is well filled ranges come that were there a while ago.
A large file that is read from its beginning to its end does not look like that.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

SECONDS: Final = 5.0
QUIET: Final = 60.0
"""Seconds from one warning to the next."""
FEWEST: Final = 64
"""Ranges in so many seconds that are no trouble, however small the window is."""
REMEMBERED: Final = 4
"""Windows whose ranges are remembered."""
Range = tuple[tuple[int, int], int]
"""The key of a file, and an offset in it."""


class Churn:
    """Counts ranges that come back to a window of so many `slots`."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots, self._clock = slots, clock
        self._latest: OrderedDict[Range, None] = OrderedDict()
        self._again, self._since, self._quiet = 0, clock(), 0.0

    def mapped(self, one: Range, *, taken: int) -> int:
        """A range was mapped, and `taken` slots are in use: how many came back just now, once these are too many; else 0."""
        if taken * 2 < self.slots or not self._is_back(one):
            return 0
        now = self._clock()
        if now - self._since > SECONDS:
            self._again, self._since = 0, now
        self._again += 1
        if self._again < max(FEWEST, self.slots) or now < self._quiet:
            return 0
        self._quiet = now + QUIET
        return self._again

    def _is_back(self, one: Range) -> bool:
        """Whether it was there before; it is remembered for the next time."""
        if one in self._latest:
            self._latest.move_to_end(one)
            return True
        self._latest[one] = None
        if len(self._latest) > REMEMBERED * self.slots:
            self._latest.popitem(last=False)
        return False
