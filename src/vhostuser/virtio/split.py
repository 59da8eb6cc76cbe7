"""The device half of a split virtqueue ("Split Virtqueues"), in pure Python: the reference.

Python has no memory fence, so this half always notifies and never offers EVENT_IDX; the data of one used entry is written
well before the index that publishes it. Live indices are read and written through `memoryview.cast`, which is one access:
`struct.pack_into` stores a zero first. Little-endian hosts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from ..errors import QueueBroken
from .chain import Descriptor, DescriptorChain
from .numbers import DESC_INDIRECT, DESC_NEXT, DESCRIPTOR_SIZE
from .walk import Memory, Walk

_DESCRIPTOR = Struct("<QIHH")
AVAIL_HEADER = 4
USED_HEADER = 4
USED_ELEMENT = 8


def ring_sizes(size: int) -> tuple[int, int, int]:
    """Bytes of the descriptor table, the available ring and the used ring of a queue, without the EVENT_IDX fields."""
    return size * DESCRIPTOR_SIZE, AVAIL_HEADER + 2 * size, USED_HEADER + USED_ELEMENT * size


class SplitQueue:
    """One split virtqueue as its device sees it. `base` is the next available index to take."""

    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
        memory: Memory,
        *,
        base: int = 0,
        indirect: bool = True,
    ) -> None:
        self.size, self.memory, self.indirect = size, memory, indirect
        self._descriptors = descriptors
        self._available = available.cast("H")
        self._used_indices = used[:USED_HEADER].cast("H")
        self._used_elements = used[USED_HEADER:].cast("I")
        self.base = base
        self._used = self._used_indices[1]
        self._used_indices[0] = 0  # whoever was here before may have asked for no kicks, and died

    @property
    def used(self) -> int:
        """The next index in the used ring."""
        return self._used

    def pop(self) -> DescriptorChain | None:
        """The next request, or None; QueueBroken if the driver left nonsense ("The Virtqueue Available Ring")."""
        waiting = (self._available[1] - self.base) & 0xFFFF
        if waiting > self.size:
            raise QueueBroken(f"available index jumped by {waiting}, the queue has {self.size} entries")
        if not waiting:
            return None
        head = self._available[2 + self.base % self.size]
        chain = self._walk(head)
        self.base = (self.base + 1) & 0xFFFF
        return chain

    def again(self, head: int, rows: Sequence[Descriptor] = ()) -> DescriptorChain:
        """The chain of a head that was taken before, as it is in the ring. QueueBroken as `pop` raises it."""
        return self._walk(head)

    def push(self, chain: DescriptorChain) -> None:
        """Give a request back; the driver sees it at the next `publish`."""
        slot = 2 * (self._used % self.size)
        self._used_elements[slot] = chain.head
        self._used_elements[slot + 1] = chain.written
        self._used = (self._used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver all that was pushed; whether there was anything, that is whether to notify it."""
        if self._used_indices[1] == self._used:
            return False
        self._used_indices[1] = self._used
        return True

    def _walk(self, head: int) -> DescriptorChain:
        """Follow a chain, entering one indirect table at most, for as many steps as the queue has entries."""
        if head >= self.size:
            raise QueueBroken(f"chain starts at descriptor {head}, the queue has {self.size}")
        walk, table, index = Walk(self.memory, self.size, indirect=self.indirect), self._descriptors, head
        while True:
            addr, length, flags, following = _DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
            if flags & DESC_INDIRECT:
                table, index = walk.enter(addr, length, flags), 0
                continue
            walk.add(addr, length, flags)
            if not flags & DESC_NEXT:
                return walk.chain(head)
            if following >= (count := table.nbytes // DESCRIPTOR_SIZE):
                raise QueueBroken(f"descriptor {index} continues at {following}, the table has {count}")
            index = following
