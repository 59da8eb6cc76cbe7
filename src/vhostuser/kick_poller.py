"""The fds that a queue thread waits on. A kick that is set without end is looked at from time to time only."""

from __future__ import annotations

import time
from typing import Final, Self

from .transport.loop import Poller

MOST_EMPTY: Final = 256
"""Kicks in a row that may find nothing in their ring. A driver's are few: its kick finds nothing if a look at the ring came
between the request and the kick, once for each of its threads that is between the two."""
REST: Final = 0.001
"""Seconds between looks at a kick that found nothing too often."""


class KickPoller:
    """A set of fds to wait on, some of which may rest for a while. It ends with a change of any of them."""

    def __init__(self) -> None:
        self._poller = Poller()
        self._resting: dict[int, float] = {}

    def watch(self, fd: int) -> Self:
        """Wait for `fd` from now on."""
        self._poller.watch(fd)
        return self

    def rest(self, fd: int) -> None:
        """Wait for `fd` again in a while."""
        self._poller.forget(fd)
        self._resting[fd] = time.monotonic() + REST

    def wait(self, timeout: float | None) -> list[int]:
        """The fds that are readable, ended or broken; none once `timeout` seconds have passed, or one has rested."""
        if not self._resting:
            return self._poller.wait(timeout)
        left = max(0.0, min(self._resting.values()) - time.monotonic())
        ready = self._poller.wait(left if timeout is None else min(left, timeout))
        self._rouse()
        return ready

    def _rouse(self) -> None:
        """Wait again for those that have rested."""
        now = time.monotonic()
        for fd in [fd for fd, until in self._resting.items() if until <= now]:
            del self._resting[fd]
            self._poller.watch(fd)
