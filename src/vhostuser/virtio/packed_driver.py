"""The driver half of a packed virtqueue, in memory that the caller provides."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from ..errors import QueueBroken
from .buffers import Buffer, Table, in_order, in_table
from .numbers import DESC_AVAIL, DESC_NEXT, DESC_USED, DESCRIPTOR_SIZE
from .order import Order
from .packed import BUFFER_ID, FLAGS, LENGTH, WRAP, available_flags, used_flags

_BODY = Struct("<QIH")


class PackedDriverQueue:
    """One packed virtqueue as its driver sees it: add chains, and collect what the device is done with.

    The event suppression areas are left as they are, zero: both sides want every notification. With `in_order` the device
    gives chains back as it was given them.
    """

    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        driver_event: memoryview,
        device_event: memoryview,
        *,
        in_order: bool = False,
    ) -> None:
        self.size = size
        self._descriptors = descriptors
        self._lengths, self._halves = descriptors.cast("I"), descriptors.cast("H")
        self._ids = list(range(size - 1, -1, -1))
        self._entries: dict[int, int] = {}
        self._order = Order() if in_order else None
        self._free = size
        self._next = 0
        self._seen = 0

    @property
    def base(self) -> int:
        """Where a device that takes over goes on, as vhost-user says it: the used position, in both halves."""
        used = self._seen % self.size | (WRAP if self._seen < self.size else 0)
        return used | used << 16

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer], table: Table | None = None) -> int:
        """Offer a chain of buffers to the device; its id. BufferError if there are not enough free descriptors.

        With a `table`, which belongs to the device until the chain comes back, that is one descriptor.
        """
        buffers = in_order(readable, writable)
        if table:
            buffers = in_table(buffers, table, self.size, linked=False)
        count = len(buffers)
        if not buffers or count > self._free:
            raise BufferError(f"{count} descriptors wanted, {self._free} of {self.size} are free")
        buffer_id = self._ids.pop()
        for at in range(count - 1, -1, -1):
            addr, length, flags = buffers[at]
            flags |= DESC_NEXT if at + 1 < count else 0
            self._offer((self._next + at) % (2 * self.size), _BODY.pack(addr, length, buffer_id), flags)
        self._entries[buffer_id] = count
        if self._order:
            self._order.add(buffer_id, sum(length for _, length in writable))
        self._free -= count
        self._next = (self._next + count) % (2 * self.size)
        return buffer_id

    def collect(self) -> tuple[int, int] | None:
        """The id of a chain that the device is done with and the bytes that it wrote; None if there is none.

        QueueBroken if the device gives back what it was not given.
        """
        used = self._used_entry() if self._order is None else self._next_in_order(self._order)
        if used is None:
            return None
        buffer_id, written = used
        count = self._entries.pop(buffer_id, None)
        if count is None:
            raise QueueBroken(f"the device gave back chain {buffer_id}, which it does not have")
        self._seen = (self._seen + count) % (2 * self.size)
        self._free += count
        self._ids.append(buffer_id)
        return buffer_id, written

    def _used_entry(self) -> tuple[int, int] | None:
        """What the descriptor says that would be the next used one, if it is."""
        slot = self._seen % self.size
        if self._halves[8 * slot + FLAGS] & (DESC_AVAIL | DESC_USED) != used_flags(self._seen, self.size):
            return None
        return self._halves[8 * slot + BUFFER_ID], self._lengths[4 * slot + LENGTH]

    def _next_in_order(self, order: Order) -> tuple[int, int] | None:
        if not order.due:
            used = self._used_entry()
            if used is None:
                return None
            order.see(*used, self.size)
        return order.take()

    def _offer(self, position: int, body: bytes, flags: int) -> None:
        """Write the descriptor at `position`, its flags last."""
        slot = position % self.size
        start = slot * DESCRIPTOR_SIZE
        self._descriptors[start : start + _BODY.size] = body
        self._halves[8 * slot + FLAGS] = flags | available_flags(position, self.size)
