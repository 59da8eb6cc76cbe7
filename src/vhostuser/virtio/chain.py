"""A descriptor chain: what the driver gives to read, and where it wants the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Descriptor: TypeAlias = tuple[int, int, int, int]
"""A descriptor of a packed ring: address, length, id, flags."""


class DescriptorChain:
    """One request: its bytes to read in order, then its bytes to write in order. Buffers lie in guest memory."""

    __slots__ = ("_read", "entries", "head", "readable", "writable", "written")

    def __init__(self, head: int, readable: Sequence[memoryview], writable: Sequence[memoryview], entries: int = 1) -> None:
        self.head = head
        """What names it to the driver: its first descriptor in a split ring, its buffer id in a packed one."""
        self.readable = readable
        self.writable = writable
        self.entries = entries
        """The descriptors of a packed ring that it takes up."""
        self.written = 0
        """Bytes that the device has written: what the driver is told."""
        self._read = 0

    def __repr__(self) -> str:
        room = f"{self.readable_size} bytes to read, {self.written} of {self.writable_size} written"
        return f"<DescriptorChain {self.head}: {room}>"

    @property
    def readable_size(self) -> int:
        """All bytes that the driver gives."""
        return sum(view.nbytes for view in self.readable)

    @property
    def writable_size(self) -> int:
        """All bytes that the driver takes."""
        return sum(view.nbytes for view in self.writable)

    def read(self, size: int = -1) -> bytes:
        """The next `size` readable bytes, or all that are left; fewer at the end. Copied: the guest can't change them."""
        if not self._read and self.readable and self.readable[0].nbytes == size:
            self._read = size
            return self.readable[0].tobytes()
        wanted = self.readable_size - self._read
        if size >= 0:
            wanted = min(wanted, size)
        data = b"".join(cut(self.readable, self._read, wanted))
        self._read += len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append to the writable bytes; the number that fitted."""
        done = 0
        for view in cut(self.writable, self.written, len(data)):
            view[:] = data[done : done + view.nbytes]
            done += view.nbytes
        self.written += done
        return done


def cut(views: Sequence[memoryview], start: int, size: int) -> list[memoryview]:
    """The pieces of `views`, laid end to end, from `start` on: `size` bytes, or fewer at the end; no piece is empty."""
    pieces = []
    for view in views:
        if size <= 0:
            break
        if start < view.nbytes:
            pieces.append(view[start : start + size])
            size -= pieces[-1].nbytes
        start = max(0, start - view.nbytes)
    return pieces
