"""The driver half of a split queue under EVENT_IDX, which notifies, and is notified, as seldom as it may be."""

from __future__ import annotations

import os
from select import select

from tests.virtio_rig import DESCRIPTOR
from vhostuser import _native
from vhostuser.testing import DEADLINE
from vhostuser.transport.fds import HasFileno


def need_event(event: int, new: int, old: int) -> bool:
    """`vring_need_event` of the specification: `event` was passed on the way from `old` to `new`."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class EventDriver:
    """Offers chains of one descriptor and collects them, in a ring that it lays out at the start of `memory`."""

    def __init__(self, size: int, memory: memoryview, kick: HasFileno, call: HasFileno, *, base: int = 0) -> None:
        self.size, self.next, self.seen = size, base, base
        self.kicks = self.calls = 0
        self._kick, self._call = kick, call
        self.available_at, self.used_at = 16 * size, -(-(16 * size + 6 + 2 * size) // 4) * 4
        self.end = self.used_at + 6 + 8 * size
        for index in range(size):
            DESCRIPTOR.pack_into(memory, 16 * index, self.end, 8, 0, 0)
        self._available = memory[self.available_at : self.available_at + 6 + 2 * size].cast("H")
        self._used = memory[self.used_at : self.end].cast("H")
        for position in range(size):
            self._available[2 + position] = position
        self._available[1] = self._used[1] = base

    @property
    def free(self) -> int:
        """Chains that may be offered now."""
        return self.size - ((self.next - self.seen) & 0xFFFF)

    def offer(self, count: int) -> None:
        """Offer the next chains, and kick the device if it wants to know."""
        old, self.next = self.next, (self.next + count) & 0xFFFF
        self._available[1] = self.next
        _native.ring.fence()
        if need_event(self._used[2 + 4 * self.size], self.next, old):
            self.kicks += 1
            os.eventfd_write(self._kick.fileno(), 1)

    def collect(self) -> int:
        """Take back what the device is done with; how many."""
        seen, self.seen = self.seen, self._used[1]
        return (self.seen - seen) & 0xFFFF

    def sleep(self) -> None:
        """Wait until there is something to collect. AssertionError if the device is done and does not say so."""
        self._available[2 + self.size] = self.seen
        _native.ring.fence()
        if self._used[1] == self.seen:
            if not select([self._call], [], [], DEADLINE)[0]:
                raise AssertionError(
                    f"no notification: collected up to {self.seen}, offered {self.next}, used {self._used[1]}"
                )
            self.calls += 1
            os.eventfd_read(self._call.fileno())
