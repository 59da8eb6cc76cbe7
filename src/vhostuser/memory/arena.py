"""Memory that a front-end shares with its back-end: a sealed memfd, handed out in blocks.

The blocks are buddies: each is a power of two of bytes at a multiple of its own size, and is cut in halves until it fits.
What comes back waits for the next of its size: a queue asks for few different ones. Only when nothing fits, halves are made
whole again.
"""

from __future__ import annotations

from typing import Final

from ..errors import LocalProtocolError
from ..protocol.payloads import MemoryRegion
from .mapping import map_file, sealed_file

SMALLEST: Final = 4
"""No block is smaller than 2 to the power of this: 16 bytes, the alignment of a descriptor table."""


class Arena:
    """`size` bytes of guest memory, at guest address 0 and at the same user address. Raises OSError if they can't be had."""

    def __init__(self, size: int) -> None:
        self.fd = sealed_file("guest-memory", size)
        try:
            self.view = map_file(self.fd.fileno(), size, 0)
        except BaseException:
            self.fd.close()
            raise
        self.region = MemoryRegion(0, size, 0, 0)
        self.clear()

    @property
    def free(self) -> int:
        """Bytes that are left, in blocks of any size."""
        return sum(len(blocks) << order for order, blocks in enumerate(self._free))

    def take(self, size: int, align: int = 16) -> int:
        """The guest address of `size` zeroed bytes; MemoryError if no block that holds them is left."""
        if size < 0:
            raise ValueError(f"{size} bytes of shared memory wanted")
        order = max(SMALLEST, (max(size, align) - 1).bit_length())
        start = self._cut(order)
        if start is None:
            self._join()
            start = self._cut(order)
        if start is None:
            raise MemoryError(f"{size} bytes of shared memory wanted, {self.free} are left, and not in one block")
        self._taken[start] = order
        self.view[start : start + size] = bytes(size)
        return start

    def give_back(self, start: int) -> None:
        """Take back the bytes that `take` gave at this address. LocalProtocolError if none are taken there."""
        order = self._taken.pop(start, None)
        if order is None:
            raise LocalProtocolError(f"no shared memory is taken at {start:#x}", field="start", value=start)
        self._free[order].add(start)

    def _cut(self, wanted: int) -> int | None:
        """A free block of this order, cut from a larger one if need be; None if there is none."""
        for order in range(wanted, len(self._free)):
            if blocks := self._free[order]:
                start = blocks.pop()
                for half in range(wanted, order):
                    self._free[half].add(start + (1 << half))
                return start
        return None

    def _join(self) -> None:
        """Make whole again all halves that are free."""
        for order, blocks in enumerate(self._free[:-1]):
            lower = {start for start in blocks if not start >> order & 1 and start + (1 << order) in blocks}
            blocks.difference_update(lower, [start + (1 << order) for start in lower])
            self._free[order + 1].update(lower)

    def clear(self) -> None:
        """Take back all that was taken."""
        self._taken: dict[int, int] = {}
        self._free = _whole(self.view.nbytes)

    def close(self) -> None:
        """Let go of the memory; it stays mapped while anything else looks at it."""
        self.fd.close()
        self.view = memoryview(b"")
        self.clear()


def _whole(size: int) -> list[set[int]]:
    """The largest blocks that `size` bytes can be cut into: their addresses by order."""
    free: list[set[int]] = [set() for _ in range(size.bit_length())]
    start = 0
    for order in range(size.bit_length() - 1, SMALLEST - 1, -1):
        if size >> order & 1:
            free[order].add(start)
            start += 1 << order
    return free
