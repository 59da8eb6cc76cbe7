"""A packed queue that keeps the books of what it has in progress in the inflight area ("Inflight I/O tracking").

The order of stores is the specification's, and after each of them the back-end may be killed: what comes after it takes
again what was taken and not given back, and nothing else. A request is given back once the driver can see it, that is by the
flags of the first descriptor of its batch. Stores before that are rolled back, those that had to follow are made up for. If
both heads of the free list agree and the used positions do not, some of these were made, and the flags may be the driver's
next: so a rollback restores that head last. A batch that the driver can't see yet may have left used flags further on: they
are taken back, or the driver would take them for the next batch. Descriptors are kept in the area, for used ones are written
over them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Final

from .errors import QueueBroken
from .memory.fragile import RingPart
from .memory.inflight import COUNTER_MASK, PACKED, Fields, Queue, Recovered, enter, in_progress, is_new, make_valid
from .virtio.chain import Descriptor, DescriptorChain
from .virtio.numbers import DESC_AVAIL, DESC_USED, DESCRIPTOR_SIZE
from .virtio.packed import WRAP, available_flags, used_flags

_DESCRIPTOR: Final = Struct("<QIHH")
FLAGS: Final = 14
"""Where a descriptor of the ring has its flags."""
FREE, OLD_FREE, USED, OLD_USED, USED_WRAP, OLD_USED_WRAP = 12, 14, 16, 18, 20, 21
PAIRS: Final = ((FREE, OLD_FREE, 2), (USED, OLD_USED, 2), (USED_WRAP, OLD_USED_WRAP, 1))
"""What a batch changes first, what it was before, and the bytes of both."""
NEXT, LAST, COUNT, ROW = 2, 4, 6, ((24, 8), (20, 4), (16, 2), (18, 2))
"""Where an entry has the next one, its request's last one and their number; and a descriptor, field by field."""


def packed_entry(index: int) -> int:
    """Where an entry is."""
    return 32 + 32 * index


class TrackedPacked:
    """A packed queue whose requests are in the area: `fields`, descriptors and all. `look` gives a slot's bytes."""

    def __init__(self, queue: Queue, fields: Fields, look: Callable[[int], bytes], recovered: Recovered) -> None:
        self.queue = queue
        self._fields, self._look = fields, look
        self._again, self._counter = deque(recovered.entries), recovered.counter
        self._entries: dict[int, int] = {}
        """The entry of each request in progress, by its id."""
        self._batch: list[DescriptorChain] = []

    @property
    def size(self) -> int:
        """The ring's entries."""
        return self.queue.size

    @property
    def base(self) -> int:
        """Both positions, as vhost-user says them."""
        return self.queue.base

    def lay(self, queue: Queue, look: Callable[[int], bytes]) -> None:
        """Go on with the queue as it is laid elsewhere, with all that is in progress."""
        self.queue, self._look = queue, look

    def pop(self) -> DescriptorChain | None:
        """What is left from before comes first, in the order in which it was taken."""
        if self._again:
            entry = self._again.popleft()
            rows = _rows(self._fields, entry)
            again = self.queue.again(rows[-1][2] if rows else self.size, rows)
            self._remember(again.head, entry)
            return again
        slot = self.queue.base & ~WRAP & 0xFFFF
        if chain := self.queue.pop():
            slots = [(slot + at) % self.size for at in range(chain.entries)]
            self._remember(chain.head, self._record([_DESCRIPTOR.unpack(self._look(each)) for each in slots]))
        return chain

    def _remember(self, buffer_id: int, entry: int) -> None:
        if self._entries.setdefault(buffer_id, entry) != entry:
            raise QueueBroken(f"id {buffer_id} is in progress twice")

    def _record(self, rows: list[Descriptor]) -> int:
        """Enter a request; the entry that stands for it."""
        fields, head = self._fields, self._fields.get(OLD_FREE, 2)
        free = head
        for at, row in enumerate(rows):
            if free >= fields.entries:
                raise QueueBroken("more descriptors are in progress than the inflight area has entries")
            entry = packed_entry(free)
            if not at:
                fields.put(entry + COUNT, 2, len(rows))
                enter(fields, entry, self._counter)
            _write_row(fields, entry, row)
            last, free = free, fields.get(entry + NEXT, 2)
        fields.put(packed_entry(head) + LAST, 2, last)
        fields.put(FREE, 2, free)
        fields.put(OLD_FREE, 2, free)
        self._counter = self._counter + 1 & COUNTER_MASK
        return head

    def push(self, chain: DescriptorChain) -> None:
        """Give a request back; the driver sees it at the next `publish`."""
        self.queue.push(chain)
        self._batch.append(chain)

    def publish(self) -> bool:
        """Show the driver all that was pushed, and then forget it; whether to notify."""
        batch, self._batch = self._batch, []
        if not batch:
            return False
        entries, fields = [self._entries.pop(chain.head) for chain in batch], self._fields
        for entry in entries:
            fields.put(packed_entry(fields.get(packed_entry(entry) + LAST, 2)) + NEXT, 2, fields.get(FREE, 2))
            fields.put(FREE, 2, entry)
        used = _position(fields, USED, USED_WRAP, self.size)
        used = (used + sum(chain.entries for chain in batch)) % (2 * self.size)
        fields.put(USED, 2, used % self.size)
        fields.put(USED_WRAP, 1, int(used < self.size))
        notify = self.queue.publish()
        for entry in entries:
            fields.put(packed_entry(entry), 1, 0)
        _commit(fields)
        return notify


def recover_packed(fields: Fields, size: int, ring: RingPart, used: int) -> tuple[Recovered, int, int]:
    """What is in progress in a packed ring of `size`, and the available and used positions at which it goes on.

    An area that is new is made ready for a ring that goes on at `used`.
    """
    if is_new(fields, size):
        _make_ready(fields, size, used)
    ring.refresh()
    position = _position(fields, OLD_USED, OLD_USED_WRAP, size)
    if position != _position(fields, USED, USED_WRAP, size) and (
        fields.get(FREE, 2) == fields.get(OLD_FREE, 2) or _flags(ring, position, size) != available_flags(position, size)
    ):
        _commit(fields)
    for new, old, width in reversed(PAIRS):
        fields.put(new, width, fields.get(old, width))
    free = fields.get(FREE, 2)
    for _ in range(size):
        if free >= size:
            break
        fields.put(packed_entry(free), 1, 0)
        free = fields.get(packed_entry(free) + NEXT, 2)
    recovered = in_progress(fields, PACKED, size)
    used = _position(fields, USED, USED_WRAP, size)
    available = used + sum(fields.get(packed_entry(entry) + COUNT, 2) for entry in recovered.entries)
    if available - used > size:
        raise QueueBroken(f"the inflight area has {available - used} descriptors in progress, the ring {size}")
    _hide(ring, used, available, size)
    return recovered, available % (2 * size), used


def _hide(ring: RingPart, used: int, available: int, size: int) -> None:
    """Take back used flags that a batch left behind which the driver can't see."""
    for position in (each % (2 * size) for each in range(used, available)):
        if _flags(ring, position, size) == used_flags(position, size):
            at = position % size * DESCRIPTOR_SIZE + FLAGS
            ring.copy[at : at + 2] = available_flags(position, size).to_bytes(2, "little")
            ring.write_back(at, at + 2)


def _flags(ring: RingPart, position: int, size: int) -> int:
    """AVAIL and USED in the descriptor at a position."""
    at = position % size * DESCRIPTOR_SIZE + FLAGS
    return int.from_bytes(ring.copy[at : at + 2], "little") & (DESC_AVAIL | DESC_USED)


def _position(fields: Fields, index: int, wrap: int, size: int) -> int:
    """A position from its index and its wrap counter."""
    slot = fields.get(index, 2)
    if slot >= size:
        raise QueueBroken(f"the inflight area is at descriptor {slot} of {size}")
    return slot if fields.get(wrap, 1) else slot + size


def _make_ready(fields: Fields, size: int, used: int) -> None:
    for index in range(fields.entries):
        fields.put(packed_entry(index), 1, 0)
        fields.put(packed_entry(index) + NEXT, 2, index + 1 if index + 1 < size else fields.entries)
    for at, width, value in ((FREE, 2, 0), (USED, 2, used % size), (USED_WRAP, 1, int(used < size))):
        fields.put(at, width, value)
    _commit(fields)
    make_valid(fields)


def _commit(fields: Fields) -> None:
    for new, old, width in PAIRS:
        fields.put(old, width, fields.get(new, width))


def _rows(fields: Fields, entry: int) -> list[Descriptor]:
    """The descriptors of a request, from the area; few enough for a ring. QueueBroken if they can't be."""
    count, rows = fields.get(packed_entry(entry) + COUNT, 2), []
    for _ in range(min(count, fields.entries)):
        if entry >= fields.entries:
            raise QueueBroken(f"the inflight area continues at entry {entry} of {fields.entries}")
        at = packed_entry(entry)
        addr, length, buffer_id, flags = (fields.get(at + offset, width) for offset, width in ROW)
        rows.append((addr, length, buffer_id, flags))
        entry = fields.get(at + NEXT, 2)
    return rows


def _write_row(fields: Fields, at: int, row: Descriptor) -> None:
    for (offset, width), value in zip(ROW, row, strict=True):
        fields.put(at + offset, width, value)
