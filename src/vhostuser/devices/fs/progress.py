"""Which requests are being done now: the end waits for them, but not for ever, and can name one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Progress:
    """The requests in progress, one in each thread at most."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[str, int, float]] = {}
        """By thread: the request's name, its inode, and when it began."""
        self._changed = threading.Condition()
        self._ending = False
        self._then: Callable[[], None] | None = None

    def begin(self, name: str, nodeid: int) -> None:
        """This thread does a request."""
        self._now[threading.get_ident()] = name, nodeid, time.monotonic()

    def end(self) -> None:
        """This thread has done its request."""
        self._now.pop(threading.get_ident(), None)
        if self._ending:
            with self._changed:
                self._changed.notify_all()
                then, self._then = (None, self._then) if self._now else (self._then, None)
            if then is not None:
                then()

    def finish(self, timeout: float, then: Callable[[], None]) -> str:
        """Call `then` once no request is in progress: in this thread, or that of the last one if it takes longer than that.

        Says which take longer; nothing if there are none.
        """
        with self._changed:
            self._ending = True
            if not self._changed.wait_for(lambda: not self._now, timeout):
                self._then = then
                return self._words()
        then()
        return ""

    def _words(self) -> str:
        now = time.monotonic()
        rows = sorted(self._now.values(), key=lambda row: row[2])
        return ", ".join(f"{name} of inode {nodeid} for {now - since:.1f} s" for name, nodeid, since in rows)
