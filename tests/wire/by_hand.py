"""A driver by hand: a ring in memory that the test shared, and requests whose buffers lie where the test wants them."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64
from vhostuser.testing.raw_frontend import RawFrontend
from vhostuser.testing.wire import DEADLINE
from vhostuser.virtio.formats import SPLIT, Format

SIZE = 16


class ByHand:
    """Ring `index` of the back-end, started at user address `at`; `ring` shows its bytes to this side."""

    def __init__(self, raw: RawFrontend, ring: memoryview, *, at: int = 0, index: int = 0, form: Format = SPLIT) -> None:
        self.raw = raw
        descriptors, available, used = form.sizes(SIZE)
        behind = descriptors + -(-available // 4) * 4
        self.driver = form.driver(
            SIZE, ring[:descriptors], ring[descriptors : descriptors + available], ring[behind : behind + used]
        )
        raw.set_up_queue(index, size=SIZE, at=at, ring=form)
        self.call = raw.eventfd()
        raw.accepted(Q.SET_VRING_CALL, U64(index), fds=[self.call])

    def offer(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Offer a chain of (guest address, bytes) and kick; its head."""
        head = self.driver.add(readable, writable)
        self.kick()
        return head

    def kick(self) -> None:
        """Notify the device."""
        if self.raw.kick is None:
            raise AssertionError("no ring was set up")
        os.eventfd_write(self.raw.kick.fileno(), 1)

    def exchange(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Offer a chain and wait for it; the bytes that the device says it wrote."""
        head = self.offer(readable, writable)
        while (done := self.driver.collect()) is None:
            self.wait(self.call.fileno(), f"chain {head} is not given back")
        if done[0] != head:
            raise AssertionError(f"chain {done[0]} came back instead of {head}")
        return done[1]

    def broken(self) -> None:
        """Wait until the device says that the queue is broken."""
        if self.raw.err is None:
            raise AssertionError("no ring was set up")
        self.wait(self.raw.err.fileno(), "the queue is not broken")

    def wait(self, fd: int, otherwise: str) -> None:
        """Wait for an eventfd and reset it."""
        if not select.select([fd], [], [], DEADLINE)[0]:
            raise AssertionError(otherwise)
        os.eventfd_read(fd)
