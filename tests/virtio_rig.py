"""Both halves of a virtqueue over one piece of memory, as a guest and a device would share it."""

from __future__ import annotations

from struct import Struct

from vhostuser import _native
from vhostuser.errors import MemoryFault
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.split import SplitQueue, ring_sizes
from vhostuser.virtqueue import DeviceQueue

NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR = Struct("<QIHH")
BUFFERS = 0x100000
"""The guest address where buffers lie; the rings are not in reach of a descriptor."""


class Rig:
    """A queue, its driver, its device (of the half that is live), and `size` bytes of buffers.

    `steps` counts the look-ups of buffers by the pure device, to which the compiled one leaves what is unusual.
    """

    def __init__(
        self, size: int = 8, *, buffers: int = 1 << 16, base: int = 0, indirect: bool = True, read_only: bool = False
    ) -> None:
        self.size, self.steps = size, 0
        parts = [memoryview(bytearray(part)) for part in ring_sizes(size)]
        self.descriptors, self.available, self.used = parts
        self.available[2:4] = self.used[2:4] = base.to_bytes(2, "little")
        self.buffers = memoryview(bytearray(buffers))
        if read_only:
            self.buffers = self.buffers.toreadonly()
        self.driver = DriverQueue(size, *parts)
        self.device = self._device(base, indirect)

    def _device(self, base: int, indirect: bool) -> DeviceQueue:
        rings = (self.size, self.descriptors, self.available, self.used, self)
        if not _native.accelerated:
            return SplitQueue(*rings, base=base, indirect=indirect)
        middle = self.buffers.nbytes // 2
        table = _native.ring.RegionTable([(BUFFERS, self.buffers[:middle]), (BUFFERS + middle, self.buffers[middle:])])
        return _native.ring.SplitRing(*rings, table, base=base, indirect=indirect)

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        """The buffers, in two pieces that touch, so that borders get crossed."""
        self.steps += 1
        start, middle = guest_addr - BUFFERS, self.buffers.nbytes // 2
        if not len:
            return []
        if start < 0 or start + len > self.buffers.nbytes:
            raise MemoryFault(f"no guest memory at {guest_addr:#x}")
        cut = min(max(middle - start, 0), len)
        pieces = (self.buffers[start : start + cut], self.buffers[start + cut : start + len])
        return [piece for piece in pieces if piece.nbytes]

    def describe(self, index: int, addr: int = BUFFERS, len: int = 1, flags: int = 0, next: int = 0) -> None:
        """Write one descriptor as a driver may, sane or not."""
        self.descriptors[16 * index : 16 * index + 16] = DESCRIPTOR.pack(addr, len, flags, next)

    def table(self, addr: int, *entries: tuple[int, int, int, int]) -> int:
        """Write an indirect table into the buffers; its bytes."""
        data = b"".join(DESCRIPTOR.pack(*entry) for entry in entries)
        self.buffers[addr - BUFFERS : addr - BUFFERS + len(data)] = data
        return len(data)

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and publish them."""
        indices = self.available.cast("H")
        for head in heads:
            indices[2 + indices[1] % self.size] = head
            indices[1] = (indices[1] + 1) & 0xFFFF
