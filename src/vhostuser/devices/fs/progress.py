"""Which requests are being done now, and how many there were: the end waits for them, but not for ever, and can name one
that hangs.

Each thread has its own row, which no other one writes to: so a request takes no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol


class Doing:
    """What one thread does: the request's name and its inode, since when (0 for none); and how often it did each."""

    __slots__ = ("counts", "name", "nodeid", "since")

    def __init__(self) -> None:
        self.name, self.nodeid, self.since = "", 0, 0.0
        self.counts: dict[str, int] = {}


class Reads(Protocol):
    """What READs without Python."""

    @property
    def reads(self) -> int:
        """How often it has."""

    @property
    def bytes_read(self) -> int:
        """How much that was."""

    def busy(self) -> list[tuple[float, int]]:
        """What it does now: since when, and of which inode."""


class Progress:
    """The requests in progress, one in each thread at most; those that compiled code does, too."""

    def __init__(self, compiled: Reads | None = None) -> None:
        self._compiled = compiled
        self._threads: dict[int, Doing] = {}
        self._changed = threading.Condition()
        self._ending = False
        self._then: Callable[[], None] | None = None

    def begin(self, name: str, nodeid: int) -> Doing:
        """This thread does a request."""
        doing = self._threads.get(threading.get_ident())
        if doing is None:
            doing = self._threads[threading.get_ident()] = Doing()
        doing.name, doing.nodeid, doing.since = name, nodeid, time.monotonic()
        return doing

    def end(self, doing: Doing) -> None:
        """This thread has done its request."""
        doing.since = 0.0
        self.look()

    def look(self) -> None:
        """A request may have been done."""
        if self._ending:
            with self._changed:
                self._changed.notify_all()
                then, self._then = (None, self._then) if any(self._now()) else (self._then, None)
            if then is not None:
                then()

    def counts(self) -> dict[str, int]:
        """What all threads have counted so far."""
        total: dict[str, int] = {}
        for doing in list(self._threads.values()):
            for name, count in list(doing.counts.items()):
                total[name] = total.get(name, 0) + count
        if (compiled := self._compiled) and compiled.reads:
            total["READ"] = total.get("READ", 0) + compiled.reads
            total["bytes_read"] = total.get("bytes_read", 0) + compiled.bytes_read
        return total

    def finish(self, timeout: float, then: Callable[[], None]) -> str:
        """Call `then` once no request is in progress: in this thread, or that of the last one if it takes longer than that.

        Says which take longer; nothing if there are none.
        """
        with self._changed:
            self._ending = True
            if not self._changed.wait_for(lambda: not any(self._now()), timeout):
                self._then = then
                return self._words()
        then()
        return ""

    def _now(self) -> Iterator[tuple[float, str, int]]:
        """Those in progress: since when, what, and of which inode."""
        rows = [(each.since, each.name, each.nodeid) for each in list(self._threads.values())]
        if self._compiled:
            rows += [(since, "READ", nodeid) for since, nodeid in self._compiled.busy()]
        return (row for row in rows if row[0])

    def _words(self) -> str:
        now = time.monotonic()
        return ", ".join(f"{name} of inode {nodeid} for {now - since:.1f} s" for since, name, nodeid in sorted(self._now()))
