"""What both ring formats ask of a chain: its buffers in order, and no more of them than the queue has entries."""

from __future__ import annotations

from typing import Protocol

from ..errors import MemoryFault, QueueBroken
from .chain import DescriptorChain
from .numbers import DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE, MAX_CHAIN_BYTES


class Memory(Protocol):
    """Where a queue's buffers lie."""

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        """The bytes at a guest address, in pieces; MemoryFault where there are none."""


class Walk:
    """One chain as it is followed, in a queue of `size` entries; `indirect` says whether tables were negotiated."""

    __slots__ = ("_indirect", "_inside", "_left", "_memory", "_readable", "_size", "_total", "_writable")

    def __init__(self, memory: Memory, size: int, *, indirect: bool) -> None:
        self._memory, self._size, self._indirect = memory, size, indirect
        self._readable: list[memoryview] = []
        self._writable: list[memoryview] = []
        self._left, self._total, self._inside = size, 0, False

    def add(self, addr: int, length: int, flags: int) -> None:
        """Take one buffer. QueueBroken if there are too many, or too long, or in the wrong order ("Scatter-Gather")."""
        if not self._left:
            raise QueueBroken(f"a chain is longer than the queue, {self._size} descriptors, or loops")
        self._left, self._total = self._left - 1, self._total + length
        if self._total > MAX_CHAIN_BYTES:
            raise QueueBroken("a chain is longer than 2^32 bytes")
        if flags & DESC_WRITE:
            self._writable += self._to_write(addr, length)
        elif self._writable:
            raise QueueBroken("a device-readable descriptor follows a device-writable one")
        else:
            self._readable += self._buffer(addr, length)

    def enter(self, addr: int, length: int, flags: int) -> memoryview:
        """A private copy of the indirect table that a descriptor refers to ("Indirect Descriptors"); once a chain."""
        if not self._indirect:
            raise QueueBroken("an indirect descriptor, which was not negotiated")
        if self._inside or flags & DESC_NEXT:
            raise QueueBroken("an indirect descriptor inside an indirect table, or with NEXT set")
        if not length or length % DESCRIPTOR_SIZE or length > self._size * DESCRIPTOR_SIZE:
            raise QueueBroken(f"an indirect table of {length} bytes")
        self._inside = True
        return memoryview(b"".join(self._buffer(addr, length)))

    def chain(self, head: int, entries: int = 1) -> DescriptorChain:
        """All that was taken."""
        return DescriptorChain(head, self._readable, self._writable, entries)

    def _to_write(self, addr: int, length: int) -> list[memoryview]:
        pieces = self._buffer(addr, length)
        if any(piece.readonly for piece in pieces):
            raise QueueBroken(f"a device-writable descriptor points to {addr:#x}, which was shared read-only")
        return pieces

    def _buffer(self, addr: int, length: int) -> list[memoryview]:
        try:
            return self._memory.slices(addr, length)
        except MemoryFault as error:
            raise QueueBroken(f"a descriptor points outside guest memory: {error}") from None
