"""The driver half of a packed queue under EVENT_IDX, which notifies, and is notified, as seldom as it may be."""

from __future__ import annotations

import os
from select import select

from tests.virtio_rig import DESCRIPTOR
from vhostuser import _native
from vhostuser.testing import DEADLINE
from vhostuser.transport.fds import HasFileno
from vhostuser.virtio.packed import available_flags, packed_sizes, used_flags

DISABLE, DESC = 1, 2


def passed(event: int, new: int, old: int, size: int) -> bool:
    """The descriptor that an event area names lies on the way from position `old` to `new`."""
    position = event & 0x7FFF if event >> 15 else (event & 0x7FFF) + size
    return (position - old) % (2 * size) < (new - old) % (2 * size)


def named(position: int, size: int) -> int:
    """A position as an event area has it."""
    return position % size | (position < size) << 15


class PackedEventDriver:
    """Offers chains of one descriptor and collects them in order, in a ring that it lays out at the start of `memory`."""

    def __init__(self, size: int, memory: memoryview, kick: HasFileno, call: HasFileno) -> None:
        self.size, self.last = size, 2 * size
        self.next = self.seen = 0
        """Positions, counted on and on."""
        self.kicks = self.calls = 0
        self._kick, self._call = kick, call
        descriptors, area, _ = packed_sizes(size)
        self.available_at, self.used_at, self.end = descriptors, descriptors + area, descriptors + 2 * area
        self._descriptors = memory[:descriptors]
        self._flags = self._descriptors.cast("H")
        self._mine = memory[self.available_at : self.used_at].cast("H")
        self._theirs = memory[self.used_at : self.end].cast("H")
        self._mine[1] = DISABLE

    @property
    def free(self) -> int:
        """Chains that may be offered now."""
        return self.size - (self.next - self.seen)

    def offer(self, count: int) -> None:
        """Offer the next chains, and kick the device if it wants to know."""
        old = self.next
        for position in range(old, old + count):
            at = position % self.last
            slot = at % self.size
            self._descriptors[16 * slot : 16 * slot + 14] = DESCRIPTOR.pack(self.end, 8, slot, 0)[:14]
            self._flags[8 * slot + 7] = available_flags(at, self.size)
        self.next += count
        _native.walk.fence()
        event, flags = self._theirs
        if passed(event, self.next % self.last, old % self.last, self.size) if flags == DESC else flags != DISABLE:
            self.kicks += 1
            os.eventfd_write(self._kick.fileno(), 1)

    def collect(self) -> int:
        """Take back what the device is done with; how many."""
        count = 0
        while self._done():
            slot = self.seen % self.size
            if self._flags[8 * slot + 6] != slot:
                raise AssertionError(f"chain {self._flags[8 * slot + 6]} came back instead of {slot}")
            self.seen, count = self.seen + 1, count + 1
        return count

    def sleep(self) -> None:
        """Wait until there is something to collect. AssertionError if the device is done and does not say so."""
        self._mine[0] = named(self.seen % self.last, self.size)
        self._mine[1] = DESC
        _native.walk.fence()
        if not self._done():
            if not select([self._call], [], [], DEADLINE)[0]:
                raise AssertionError(f"no notification: collected up to {self.seen}, offered up to {self.next}")
            self.calls += 1
            os.eventfd_read(self._call.fileno())

    def _done(self) -> bool:
        at = self.seen % self.last
        flags = self._flags[8 * (at % self.size) + 7] & 0x8080
        return self.seen < self.next and flags == used_flags(at, self.size)
