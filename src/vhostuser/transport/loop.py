"""Waiting for fds in one thread, with a way for other threads to end the wait."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self


class Waker:
    """An eventfd that any thread, or a signal handler, may set to end a wait."""

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


class SignalWaker(Waker):
    """A Waker that signals set as well while the main thread is `alert`: those that Python has handlers for.

    Python calls a handler between two steps of its own: of a signal that comes just before a wait it would know at the
    wait's end only. So who is woken clears this, and looks whether there is anything: `is_set` tells what `set` has done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fd, self._end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # Python writes a byte, which no eventfd takes
        self.is_set = False
        """`set` was called."""

    def set(self) -> None:
        """As Waker."""
        with self._lock:
            self.is_set = True
            if self._end >= 0:
                with contextlib.suppress(BlockingIOError):  # full, so it is readable
                    os.write(self._end, b"\0")

    def clear(self) -> None:
        """Forget what woke; what was set stays set."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, select.PIPE_BUF):
                pass

    def close(self) -> None:
        """Close the fds. A signal handler that comes between finds nothing to write to, rather than somebody else's fd."""
        with self._lock:
            end, self._end = self._end, -1
            if end >= 0:
                os.close(end)
            super().close()

    @contextlib.contextmanager
    def alert(self) -> Iterator[None]:
        """Within the block signals set this, if this is the main thread: no other one is called for a signal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)


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
