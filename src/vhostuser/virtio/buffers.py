"""What a driver offers to its device: buffers, one after another in the ring, or listed in a table of their own."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from .numbers import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE

_DESCRIPTOR = Struct("<QIHH")
Buffer = tuple[int, int]
"""A guest address and a number of bytes."""
Given = tuple[int, int, int]
"""The same, and the flags of its descriptor."""


class Table(NamedTuple):
    """Room for an indirect table: where the device finds it, and its bytes."""

    address: int
    view: memoryview


def in_order(readable: Sequence[Buffer], writable: Sequence[Buffer]) -> list[Given]:
    """The buffers of one request, those to read first."""
    return [(*buffer, 0) for buffer in readable] + [(*buffer, DESC_WRITE) for buffer in writable]


def table_size(count: int) -> int:
    """Bytes of a table of so many buffers."""
    return count * DESCRIPTOR_SIZE


def in_table(buffers: Sequence[Given], table: Table, size: int, *, linked: bool) -> list[Given]:
    """List the buffers in the table and return what refers to it. BufferError if they are more than the queue's `size`.

    In a split ring the entries are `linked`; in a packed one their order says all, and NEXT means nothing ("Indirect
    Descriptors", "Indirect Flag").
    """
    if not buffers or len(buffers) > size:
        raise BufferError(f"{len(buffers)} buffers wanted, a table of this queue has 1 to {size}")
    for at, (addr, length, flags) in enumerate(buffers):
        last = at + 1 == len(buffers)
        rest = (flags if last else flags | DESC_NEXT, 0 if last else at + 1) if linked else (0, flags)
        table.view[table_size(at) : table_size(at + 1)] = _DESCRIPTOR.pack(addr, length, *rest)
    return [(table.address, table_size(len(buffers)), DESC_INDIRECT)]
