"""A thread that waits for fds on behalf of a device: each once, whenever it is asked to."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Final

from ..transport.loop import Waker

INPUT: Final = select.POLLIN
OUTPUT: Final = select.POLLOUT
ENDED: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL
"""What poll says of an fd besides, asked or not."""


class FdWatch:
    """Calls `ready` with an fd, in a thread of its own, once the fd is as `ask` wanted it, or has ended.

    The thread begins with the first `ask` and ends with `close`.
    """

    def __init__(self, name: str, ready: Callable[[int, int], None]) -> None:
        self._name, self._ready = name, ready
        self._lock = threading.Lock()
        self._wishes: dict[tuple[int, int], float] = {}
        """Fds and events that are waited for, and the moment (time.monotonic) from which on."""
        self._waker = Waker()
        self._thread: threading.Thread | None = None
        self._closing = False

    def ask(self, fd: int, events: int, *, pause: float = 0.0) -> None:
        """Wait for INPUT or OUTPUT on `fd` from now on, or from `pause` seconds on; from any thread."""
        with self._lock:
            if self._closing or (fd, events) in self._wishes:
                return
            self._wishes[fd, events] = time.monotonic() + pause
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
        self._waker.set()

    def close(self) -> None:
        """End the thread. Not to be called in it."""
        with self._lock:
            self._closing = True
        self._waker.set()
        if self._thread:
            self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        while not self._closing:
            for fd, events in self._wait():
                with self._lock:
                    self._wishes.pop((fd, events), None)
                self._ready(fd, events)

    def _wait(self) -> list[tuple[int, int]]:
        """Wait once: the wishes that are granted, none if there are new ones or one's pause is over."""
        now = time.monotonic()
        with self._lock:
            due = [wish for wish, since in self._wishes.items() if since <= now]
            later = [since - now for since in self._wishes.values() if since > now]
        poll = select.poll()
        poll.register(self._waker, INPUT)
        wanted: dict[int, int] = {}
        for fd, events in due:
            wanted[fd] = wanted.get(fd, 0) | events
            poll.register(fd, wanted[fd])
        found = dict(poll.poll(1000 * min(later) + 1 if later else None))
        if found.pop(self._waker.fileno(), 0):
            self._waker.clear()
        return [(fd, events) for fd, events in due if found.get(fd, 0) & (events | ENDED)]
