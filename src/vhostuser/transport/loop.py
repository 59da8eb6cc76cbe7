"""Waiting for fds in one thread, with a way for other threads to end the wait."""

from __future__ import annotations

import errno
import os
import select
import threading
from types import TracebackType
from typing import Self


class Waker:
    """An eventfd that any thread, or a signal handler, may set to end another thread's wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may set what its own thread closes
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """The fd that becomes readable; -1 once closed."""
        return self._fd

    def set(self) -> None:
        """End the wait, now or the next one. Does nothing once closed."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget all that was set."""
        drain(self._fd)

    def close(self) -> None:
        """Close the fd."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Poller:
    """A set of fds to wait on, kept between waits."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: set[int] = set()

    def watch(self, fd: int) -> Self:
        """Wait for `fd` from now on."""
        self._poll.register(fd, select.POLLIN)
        self._watched.add(fd)
        return self

    def forget(self, fd: int) -> None:
        """Wait for `fd` no more."""
        if fd in self._watched:
            self._watched.remove(fd)
            self._poll.unregister(fd)

    def wait(self, timeout: float | None) -> list[int]:
        """The fds that are readable, ended or broken; none once `timeout` seconds have passed."""
        return [fd for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000)]


def drain(fd: int) -> bool:
    """Reset an eventfd of whoever made it, blocking or not; whether it was set. OSError if it can't be read."""
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    if not ready.poll(0):
        return False
    try:
        if _read(fd):
            return True
    except BlockingIOError:
        return False
    raise OSError(errno.EPIPE, "it has ended")


def _read(fd: int) -> int:
    """Read without waiting, even if the eventfd's other owner has just made it one that waits, and emptied it."""
    try:
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return len(os.read(fd, 8))
