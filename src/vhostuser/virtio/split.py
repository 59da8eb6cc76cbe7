"""The device half of a split virtqueue ("Split Virtqueues"), in pure Python: the reference.

Python has no memory fence, so this half always notifies and never offers EVENT_IDX; the data of one used entry is written
well before the index that publishes it. Live indices are read and written through `memoryview.cast`, which is one access:
`struct.pack_into` stores a zero first. Little-endian hosts only.
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

from ..errors import MemoryFault, QueueBroken
from .chain import DescriptorChain
from .numbers import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE, MAX_CHAIN_BYTES

_DESCRIPTOR = Struct("<QIHH")
AVAIL_HEADER = 4
USED_HEADER = 4
USED_ELEMENT = 8


class Memory(Protocol):
    """Where a queue's buffers lie."""

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        """The bytes at a guest address, in pieces; MemoryFault where there are none."""


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
        table, count, index, inside = self._descriptors, self.size, head, False
        parts: tuple[list[memoryview], list[memoryview]] = ([], [])
        total = steps = 0
        while steps < self.size:
            addr, length, flags, following = _DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
            if flags & DESC_INDIRECT:
                table, count = self._indirect(addr, length, flags, inside)
                index, inside = 0, True
                continue
            steps, total = steps + 1, total + length
            if total > MAX_CHAIN_BYTES:
                raise QueueBroken("a chain is longer than 2^32 bytes")
            writable = bool(flags & DESC_WRITE)
            if not writable and parts[1]:
                raise QueueBroken("a device-readable descriptor follows a device-writable one")
            parts[writable].extend(self._buffer(addr, length, writable=writable))
            if not flags & DESC_NEXT:
                return DescriptorChain(head, *parts)
            if following >= count:
                raise QueueBroken(f"descriptor {index} continues at {following}, the table has {count}")
            index = following
        raise QueueBroken(f"a chain is longer than the queue, {self.size} descriptors, or loops")

    def _indirect(self, addr: int, length: int, flags: int, inside: bool) -> tuple[memoryview, int]:
        """The indirect table at `addr` and its number of entries ("Indirect Descriptors")."""
        if not self.indirect:
            raise QueueBroken("an indirect descriptor, which was not negotiated")
        if inside or flags & DESC_NEXT:
            raise QueueBroken("an indirect descriptor inside an indirect table, or with NEXT set")
        if not length or length % DESCRIPTOR_SIZE or length > self.size * DESCRIPTOR_SIZE:
            raise QueueBroken(f"an indirect table of {length} bytes")
        return memoryview(b"".join(self._buffer(addr, length))), length // DESCRIPTOR_SIZE

    def _buffer(self, addr: int, length: int, *, writable: bool = False) -> list[memoryview]:
        try:
            pieces = self.memory.slices(addr, length)
        except MemoryFault as error:
            raise QueueBroken(f"a descriptor points outside guest memory: {error}") from None
        if writable and any(piece.readonly for piece in pieces):
            raise QueueBroken(f"a device-writable descriptor points to {addr:#x}, which was shared read-only")
        return pieces
