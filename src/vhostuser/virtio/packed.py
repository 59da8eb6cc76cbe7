"""The device half of a packed virtqueue ("Packed Virtqueues"), in pure Python: the reference.

One ring is all: the driver makes descriptors available in it, the device puts used ones over them. Each side goes round
with a wrap counter, which is 1 in the first round. Here slot and counter are one number, a position: the slot itself while
the counter is 1, the slot plus the size while it is 0. So positions count modulo twice the size, which may be any.

What makes a descriptor available or used is its flags: they are read before the rest of it, and written after. A batch
writes those of its first used descriptor last of all, since the driver, who reads in order, sees none before that one.

Python has no memory fence, so this half always notifies. DISABLE in the driver event suppression area is not honoured: a
driver sets it back to ENABLE and then looks at the ring once more, and without a fence between the used flags and the read
of the area both could miss each other. For the same reason EVENT_IDX is never offered. Little-endian hosts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from ..errors import QueueBroken
from .chain import Descriptor, DescriptorChain
from .numbers import DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, DESCRIPTOR_SIZE, EVENT_ENABLE, EVENT_SIZE
from .walk import Memory, Walk

_DESCRIPTOR = Struct("<QIHH")
_BODY = Struct("<QIH")
LENGTH, BUFFER_ID, FLAGS = 2, 6, 7
"""Where a descriptor has these, in units of their own size."""

WRAP: Final = 1 << 15
_INDEX: Final = WRAP - 1
FIRST_BASE: Final = WRAP << 16 | WRAP
"""The base of a ring that nobody has used: both wrap counters are 1."""


def packed_sizes(size: int) -> tuple[int, int, int]:
    """Bytes of the descriptor ring, and of the driver and the device event suppression areas."""
    return size * DESCRIPTOR_SIZE, EVENT_SIZE, EVENT_SIZE


def available_flags(position: int, size: int) -> int:
    """AVAIL and USED in a descriptor that is available at `position`."""
    return DESC_AVAIL if position < size else DESC_USED


def used_flags(position: int, size: int) -> int:
    """AVAIL and USED in a descriptor that is used at `position`."""
    return DESC_AVAIL | DESC_USED if position < size else 0


def whole_base(base: int) -> int:
    """A base that a front-end sent, with both halves.

    DPDK sends the available half only, for the other is the same when nothing is in progress. It is taken so where the upper
    half is 0 and the lower one begins with a 1, which else is a ring full of what is in progress, or nearly.
    """
    return base | base << 16 if base & WRAP and not base >> 16 else base


def read_base(base: int, size: int) -> tuple[int, int]:
    """The next available and the next used position ("Vring descriptor indices for packed virtqueues").

    QueueBroken if the base is none of a ring of `size`.
    """
    halves = (base & 0xFFFF, base >> 16)
    available, used = (half & _INDEX if half & WRAP else half + size for half in halves)
    if any(half & _INDEX >= size for half in halves) or (available - used) % (2 * size) > size:
        raise QueueBroken(f"base {base:#x} is none of a packed ring of {size} descriptors")
    return available, used


def write_base(available: int, used: int, size: int) -> int:
    """The base that says both positions."""
    halves = (position % size | (WRAP if position < size else 0) for position in (available, used))
    return next(halves) | next(halves) << 16


class PackedQueue:
    """One packed virtqueue as its device sees it."""

    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        driver_event: memoryview,
        device_event: memoryview,
        memory: Memory,
        *,
        base: int = FIRST_BASE,
        indirect: bool = True,
    ) -> None:
        self.size, self.memory, self.indirect = size, memory, indirect
        self._descriptors = descriptors
        self._lengths, self._halves = descriptors.cast("I"), descriptors.cast("H")
        self._available, self._used = read_base(base, size)
        self._shown = self._used
        self._hidden: list[tuple[int, int]] = []
        """Slot and flags of what was pushed and not published."""
        device_event.cast("H")[1] = EVENT_ENABLE

    @property
    def base(self) -> int:
        """Where the next descriptor is taken, and where the driver looks for the next used one, as vhost-user says it."""
        return write_base(self._available, self._shown, self.size)

    def resume(self, available: int, shown: int) -> None:
        """Be where another device half of this ring is: take at position `available`, with `shown` the first not shown."""
        self._available, self._shown = available, shown

    def pop(self) -> DescriptorChain | None:
        """The next request, or None; QueueBroken if the driver left nonsense ("Packed Virtqueues")."""
        start = position = self._available
        flags = self._offered(start)
        if flags is None:
            return None
        room = self.size - (start - self._shown) % (2 * self.size)
        walk = Walk(self.memory, self.size, indirect=self.indirect)
        while flags is not None and room:
            addr, length, buffer_id = _BODY.unpack_from(self._descriptors, position % self.size * DESCRIPTOR_SIZE)
            if flags & DESC_INDIRECT:
                _add_table(walk, addr, length, flags, alone=position == start)
            else:
                walk.add(addr, length, flags)
            position, room = (position + 1) % (2 * self.size), room - 1
            if not flags & DESC_NEXT:
                return self._take(walk, buffer_id, position)
            flags = self._offered(position)
        raise QueueBroken(f"a chain wants descriptor {position % self.size}, which is not available")

    def again(self, head: int, rows: Sequence[Descriptor]) -> DescriptorChain:
        """The chain of descriptors that were taken before, and may be gone from the ring. QueueBroken as `pop` raises it."""
        walk, flags = Walk(self.memory, self.size, indirect=self.indirect), 0
        for at, (addr, length, _, flags) in enumerate(rows):
            if flags & DESC_INDIRECT:
                _add_table(walk, addr, length, flags, alone=not at)
            else:
                walk.add(addr, length, flags)
        if not rows or flags & DESC_NEXT or head >= self.size:
            raise QueueBroken(f"a chain of {len(rows)} descriptors that has no end, or id {head}, which is none")
        return walk.chain(head, len(rows))

    def push(self, chain: DescriptorChain) -> None:
        """Give a request back; the driver sees it at the next `publish`."""
        slot, size = self._used % self.size, self.size
        self._halves[8 * slot + BUFFER_ID] = chain.head
        self._lengths[4 * slot + LENGTH] = chain.written
        self._hidden.append((slot, used_flags(self._used, size) | (DESC_WRITE if chain.written else 0)))
        self._used = (self._used + chain.entries) % (2 * size)

    def publish(self) -> bool:
        """Show the driver all that was pushed; whether there was anything, that is whether to notify it."""
        if not self._hidden:
            return False
        for slot, flags in reversed(self._hidden):
            self._halves[8 * slot + FLAGS] = flags
        self._hidden.clear()
        self._shown = self._used
        return True

    def _offered(self, position: int) -> int | None:
        """The flags of the descriptor at `position`, if the driver has made it available."""
        flags = self._halves[8 * (position % self.size) + FLAGS]
        return flags if flags & (DESC_AVAIL | DESC_USED) == available_flags(position, self.size) else None

    def _take(self, walk: Walk, buffer_id: int, end: int) -> DescriptorChain:
        """The chain up to `end`. Ids name the entries of vhost-user's inflight tables, so they are below the size."""
        if buffer_id >= self.size:
            raise QueueBroken(f"buffer id {buffer_id}, the queue has {self.size} descriptors")
        entries = (end - self._available) % (2 * self.size)
        self._available = end
        return walk.chain(buffer_id, entries)


def _add_table(walk: Walk, addr: int, length: int, flags: int, *, alone: bool) -> None:
    """Take the buffers of an indirect table, which is all of its chain, one after another ("Indirect Flag").

    Of the flags in it only WRITE means anything. Drivers are known that set NEXT as well (DPDK), which does no harm but in
    the last one.
    """
    if not alone:
        raise QueueBroken("an indirect descriptor follows a direct one")
    last = 0
    for start, size, _, last in _DESCRIPTOR.iter_unpack(walk.enter(addr, length, flags)):
        if last & DESC_INDIRECT:
            raise QueueBroken("an indirect descriptor inside an indirect table")
        walk.add(start, size, last)
    if last & DESC_NEXT:
        raise QueueBroken("a chain continues after the last descriptor of its indirect table")
