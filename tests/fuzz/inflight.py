"""Any inflight area beside any ring gives the same requests or the same broken queue, and the same bytes, in both halves."""

from __future__ import annotations

import os
from typing import Final

from tests.fuzz.taking import Taker
from tests.fuzz.watching import check, outcome_of, watched
from tests.halves import HALVES, using
from vhostuser.errors import QueueBroken, RemoteProtocolError
from vhostuser.memory.guest import GuestMemory
from vhostuser.memory.inflight import PACKED, SPLIT, VERSION, VERSION_AT, InflightArea, Layout, area_size
from vhostuser.protocol.payloads import Inflight, MemoryRegion, VringAddr
from vhostuser.testing import sparse_file
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.formats import ring_format
from vhostuser.virtio.numbers import Feature
from vhostuser.virtqueue import DeviceQueue, Place

PARTS: Final = (0x0, 0x400, 0x600)
BUFFERS: Final = 0x1000
MEMORY: Final = 0x2000
AREA: Final = 0x1000
STEPS: Final = 24
SMALL: Final = (0, 1, 2, 3, 4, 7, 8, 0xFFFF, 0x8000, 0x8001)


class Side:
    """One implementation's memory, area and back-end; the same image as the other one's."""

    def __init__(self, half: str, taker: Taker) -> None:
        self.half = half
        self.packed, self.fragile, self.size = taker.flag(), taker.rarely(), 1 << taker.below(4)
        self.features = self.packed << Feature.RING_PACKED
        self.layout = PACKED if self.packed else SPLIT
        self.memory_file, self.area_file = sparse_file(MEMORY, seal=True), sparse_file(AREA, seal=not self.fragile)
        self.memory = GuestMemory.of([MemoryRegion(0, MEMORY, 0, 0)], [self.memory_file.fileno()])
        self.body = _body(taker, self.layout, self.size)
        self.base = self._base(taker)
        os.pwrite(self.memory_file.fileno(), _ring(taker, self.size, packed=self.packed), 0)
        os.pwrite(self.area_file.fileno(), _area(taker, self.layout, self.size), self.body.mmap_offset % AREA)
        self.queue: DeviceQueue | None = None
        self.taken: list[DescriptorChain] = []

    def _base(self, taker: Taker) -> int:
        if taker.rarely():
            return taker.number(4)
        slot = taker.below(self.size) | taker.below(2) << 15
        return slot | slot << 16 if self.packed else taker.pick(SMALL)

    def begin(self) -> object:
        """A back-end comes, and finds what there is."""
        self.taken.clear()
        addresses = VringAddr(0, 0, PARTS[0], PARTS[2], PARTS[1], 0)

        def make() -> str:
            area = InflightArea(self.body, self.area_file.fileno())
            with using(self.half):
                self.queue = Place(0, self.size, addresses, self.memory, self.features, area).begin(self.base)
            return "begun"

        self.queue = None
        return outcome_of(make, QueueBroken, RemoteProtocolError)

    def step(self, taker: Taker) -> object:
        """One thing that a back-end does; what came of it."""
        what, queue = taker.byte() % 16, self.queue
        if what == 15:
            if self.fragile and taker.rarely():
                os.ftruncate(self.area_file.fileno(), 0)
            return None
        if what == 14 or queue is None:
            return self.begin()
        return outcome_of(lambda: self._work(queue, what, taker), QueueBroken)

    def _work(self, queue: DeviceQueue, what: int, taker: Taker) -> object:
        if what < 7:
            return self._pop(queue)
        if what < 11:
            if self.taken:
                chain = self.taken.pop(taker.below(len(self.taken)))
                chain.written = taker.byte()
                queue.push(chain)
            return None
        queue.publish()  # whether to notify is theirs: the compiled half knows what the driver wants
        return None

    def _pop(self, queue: DeviceQueue) -> object:
        if (chain := queue.pop()) is None:
            return None
        check(chain.head < 0x10000 if self.packed else chain.head < self.size, "a request has no such name", chain.head)
        self.taken.append(chain)
        check(len(self.taken) <= 2 * STEPS, "requests without end")
        return chain.head, chain.entries, chain.readable_size, chain.writable_size

    def shown(self) -> tuple[bytes, bytes]:
        """All that outlives the back-end."""
        return os.pread(self.memory_file.fileno(), MEMORY, 0), os.pread(self.area_file.fileno(), AREA, 0)

    def close(self) -> None:
        """Let go of everything."""
        self.queue = None
        self.taken.clear()
        for file in (self.memory_file, self.area_file):
            file.close()


def one_input(data: bytes) -> None:
    """The same lives of back-ends over the same images."""
    with watched():
        seen = [_lives(half, Taker(data)) for half in HALVES]
        check(seen == seen[:1] * len(seen), "the implementations differ", seen)


def _lives(half: str, taker: Taker) -> list[object]:
    side = Side(half, taker)
    try:
        did = [side.begin()]
        for _ in range(STEPS):
            if taker.left:
                did.append(side.step(taker))
        return [*did, side.shown()]
    finally:
        side.close()


def _body(taker: Taker, layout: Layout, size: int) -> Inflight:
    if taker.rarely():
        return Inflight(taker.number(8), taker.number(8), 1 + taker.below(3), 1 + taker.below(9))
    queues = 1 + taker.below(2)
    return Inflight(area_size(layout, queues, size), 64 * taker.below(3), queues, size)


def _ring(taker: Taker, size: int, *, packed: bool) -> bytes:
    """A ring whose fields are small numbers, mostly."""
    memory = bytearray(MEMORY)
    lengths = ring_format(packed << Feature.RING_PACKED).sizes(size)
    for slot in range(size):
        flags = taker.pick((0, 1, 2, 3, 0x80, 0x8000, 0x8080, 0x81, 0x82, 0x8001)) if not taker.rarely() else taker.number(2)
        link = taker.below(size) if not taker.rarely() else taker.number(2)
        last = (link, flags) if packed else (flags, link)
        row = (BUFFERS + 16 * slot, 8, *last)
        memory[16 * slot : 16 * slot + 16] = b"".join(
            v.to_bytes(w, "little") for v, w in zip(row, (8, 4, 2, 2), strict=True)
        )
    for start, length in zip(PARTS[1:], lengths[1:], strict=True):
        memory[start : start + min(length, 40)] = _halves(taker, min(length, 40))
    return bytes(memory)


def _area(taker: Taker, layout: Layout, size: int) -> bytes:
    """A part of a queue: one that is new, or of small numbers."""
    if taker.flag() and taker.flag():
        return bytes(layout.size(size))
    area = bytearray(_halves(taker, layout.size(size)))
    if not taker.rarely():
        area[VERSION_AT : VERSION_AT + 2] = VERSION.to_bytes(2, "little")
    return bytes(area)


def _halves(taker: Taker, size: int) -> bytes:
    """Numbers of two bytes, zero where the input says no more."""
    return b"".join(
        (taker.pick(SMALL) if how < 200 else taker.number(2)).to_bytes(2, "little")
        for _ in range(size // 2)
        for how in (taker.byte(),)
    ).ljust(size, b"\0")
