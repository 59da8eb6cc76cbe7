"""A queue as its driver uses it, without a VM."""

from __future__ import annotations

import os
import time
from typing import Protocol

from .errors import DeadlineExpired, LocalProtocolError
from .memory.arena import Arena
from .protocol.payloads import VringAddr
from .transport.fds import OwnedFd
from .transport.loop import drain
from .virtio.formats import DriverHalf, ring_format


class Waiter(Protocol):
    """Who serves the back-end while a queue waits."""

    def wait_for(self, fd: OwnedFd, deadline: float) -> bool:
        """Answer the back-end's requests until `fd` is readable (true) or the deadline has passed."""


class Queue:
    """One started virtqueue: its ring and its buffers lie in the memory that the front-end shares.

    `features` are those that the front-end has acknowledged.
    """

    def __init__(self, index: int, size: int, memory: Arena, waiter: Waiter, features: int) -> None:
        self.index, self.size = index, size
        self._memory, self._waiter = memory, waiter
        ring = ring_format(features)
        self.base = ring.first_base
        sizes = ring.sizes(size)
        descriptors = memory.take(sizes[0], 16)
        available = memory.take(sizes[1], 4)
        used = memory.take(sizes[2], 4)
        self.addresses = VringAddr(index, 0, descriptors, used, available, 0)
        parts = [
            memory.view[start : start + size] for start, size in zip((descriptors, available, used), sizes, strict=True)
        ]
        self._ring: DriverHalf | None = ring.driver(size, *parts)
        self.kick = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.call = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.err = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def exchange(self, request: bytes = b"", reply_size: int = 0, *, timeout: float = 10.0) -> bytes:
        """Send one request and wait for its answer: the bytes that the device wrote, at most `reply_size`.

        The back-end's own requests are answered meanwhile. DeadlineExpired after `timeout` seconds, QueueBroken if the
        device breaks the ring, MemoryError if the shared memory is too small, LocalProtocolError once the queue is stopped.
        """
        ring = self._running()
        mark = self._memory.mark()
        try:
            readable = self._memory.take(len(request)) if request else 0
            writable = self._memory.take(reply_size) if reply_size else 0
            self._memory.view[readable : readable + len(request)] = request
            head = ring.add([(readable, len(request))] if request else [], [(writable, reply_size)] if reply_size else [])
        except (MemoryError, BufferError):
            self._memory.release(mark)
            raise
        os.eventfd_write(self.kick.fileno(), 1)
        written = self._wait(head, timeout)
        answer = bytes(self._memory.view[writable : writable + min(written, reply_size)])
        self._memory.release(mark)
        return answer

    def close(self) -> None:
        """The queue is stopped: let go of its ring and its eventfds."""
        self._ring = None
        for fd in (self.kick, self.call, self.err):
            fd.close()

    def _running(self) -> DriverHalf:
        if self._ring is None:
            raise LocalProtocolError(f"queue {self.index} is stopped: start it again", field="index", value=self.index)
        return self._ring

    def _wait(self, head: int, timeout: float) -> int:
        """The bytes that the device wrote for chain `head`. A chain whose wait expired stays the device's."""
        deadline = time.monotonic() + timeout
        while True:
            done = self._running().collect()
            if done is None:
                if not self._waiter.wait_for(self.call, deadline):
                    raise DeadlineExpired(f"queue {self.index}: no answer within {timeout:g} s")
                drain(self.call.fileno())
            elif done[0] == head:
                return done[1]
