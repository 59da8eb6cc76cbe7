"""The driver half of a split virtqueue, in memory that the caller provides."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from struct import Struct

from ..errors import QueueBroken
from .buffers import Buffer, Table, in_order, in_table
from .numbers import DESC_NEXT, DESCRIPTOR_SIZE
from .order import Order
from .split import USED_HEADER

_DESCRIPTOR = Struct("<QIHH")


class DriverQueue:
    """One split virtqueue as its driver sees it: add chains, and collect what the device is done with.

    With `in_order` descriptors are used in the order of the table, and the device gives chains back as it was given them.
    """

    def __init__(
        self, size: int, descriptors: memoryview, available: memoryview, used: memoryview, *, in_order: bool = False
    ) -> None:
        self.size = size
        self._descriptors = descriptors
        self._available = available.cast("H")
        self._used_indices = used[:USED_HEADER].cast("H")
        self._used_elements = used[USED_HEADER:].cast("I")
        self._free = deque(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._order = Order() if in_order else None
        self._next = 0
        self._seen = 0

    @property
    def base(self) -> int:
        """Where a device that takes over goes on, as vhost-user says it: at the used index, as far as was collected."""
        return self._seen

    def go_on_at(self, index: int) -> None:
        """Let the next chain be number `index`, as that after a ring that ran before."""
        self._next = self._seen = index

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer], table: Table | None = None) -> int:
        """Offer a chain of buffers to the device; its head. BufferError if there are not enough free descriptors.

        With a `table`, which belongs to the device until the chain comes back, that is one descriptor.
        """
        buffers = in_order(readable, writable)
        if table:
            buffers = in_table(buffers, table, self.size, linked=True)
        if not buffers or len(buffers) > len(self._free):
            raise BufferError(f"{len(buffers)} descriptors wanted, {len(self._free)} of {self.size} are free")
        chain = [self._free.pop() for _ in buffers]
        for at, (index, (addr, length, flags)) in enumerate(zip(chain, buffers, strict=True)):
            last = at + 1 == len(chain)
            following = 0 if last else chain[at + 1]
            entry = _DESCRIPTOR.pack(addr, length, flags | (0 if last else DESC_NEXT), following)
            self._descriptors[index * DESCRIPTOR_SIZE : (index + 1) * DESCRIPTOR_SIZE] = entry
        self._chains[chain[0]] = chain
        if self._order:
            self._order.add(chain[0], sum(length for _, length in writable))
        self._available[2 + self._next % self.size] = chain[0]
        self._next = (self._next + 1) & 0xFFFF
        self._available[1] = self._next
        return chain[0]

    def collect(self) -> tuple[int, int] | None:
        """The head of a chain that the device is done with and the bytes that it wrote; None if there is none.

        QueueBroken if the device gives back what it was not given.
        """
        if self._order:
            return self._collect_in_order(self._order)
        if self._used_indices[1] == self._seen:
            return None
        head, written = self._used_entry()
        chain = self._chains.pop(head, None)
        if chain is None:
            raise QueueBroken(f"the device gave back chain {head}, which it does not have")
        self._seen = (self._seen + 1) & 0xFFFF
        self._free.extend(reversed(chain))
        return head, written

    def _used_entry(self) -> tuple[int, int]:
        slot = 2 * (self._seen % self.size)
        return self._used_elements[slot], self._used_elements[slot + 1]

    def _collect_in_order(self, order: Order) -> tuple[int, int] | None:
        if not order.due:
            waiting = (self._used_indices[1] - self._seen) & 0xFFFF
            if not waiting:
                return None
            order.see(*self._used_entry(), waiting)
        head, written = order.take()
        self._seen = (self._seen + 1) & 0xFFFF
        self._free.extendleft(self._chains.pop(head))
        return head, written
