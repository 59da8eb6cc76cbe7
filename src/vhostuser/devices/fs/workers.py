"""Threads that do requests which a queue's own thread would have to wait for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ...virtio.chain import DescriptorChain


class Workers:
    """So many threads at most, each of which does one request at a time; they begin when they are needed.

    What waits is never more than the rings hold. `do` raises nothing.
    """

    def __init__(self, count: int, do: Callable[[int, DescriptorChain], None]) -> None:
        self._count, self._do = count, do
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, DescriptorChain]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def put(self, queue: int, chain: DescriptorChain) -> None:
        """Have a request of that queue done."""
        with self._changed:
            self._waiting.append((queue, chain))
            if len(self._waiting) > self._idle and len(self._threads) < self._count and not self._closed:
                self._begin()
            self._changed.notify()

    def _begin(self) -> None:
        """Start one thread more. Where the system has none, those that there are do it all; without any it is an error."""
        thread = threading.Thread(target=self._run, name=f"vhu-fs worker {len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                self._waiting.pop()  # the request fails: nobody may do it later
                raise
        else:
            self._threads.append(thread)

    def drop(self) -> None:
        """Forget what no thread has begun: its driver is gone."""
        with self._changed:
            self._waiting.clear()

    def close(self, timeout: float) -> None:
        """End the threads, and wait so many seconds in all for those that have a request in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while work := self._next():
            self._do(*work)

    def _next(self) -> tuple[int, DescriptorChain] | None:
        """The next request, once there is one; None at the end."""
        with self._changed:
            self._idle += 1
            while not (self._waiting or self._closed):
                self._changed.wait()
            self._idle -= 1
            return self._waiting.popleft() if self._waiting else None
