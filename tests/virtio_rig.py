"""Both halves of a virtqueue over one piece of memory, as a guest and a device would share it, in either format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct
from typing import TYPE_CHECKING, TypeAlias

from vhostuser import _native
from vhostuser.errors import MemoryFault
from vhostuser.memory.fragile import FragilePackedQueue, FragileQueue, RingPart
from vhostuser.memory.mapping import address_of
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtqueue import DeviceQueue

if TYPE_CHECKING:
    from vhostuser._native.walk import RegionTable

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
DESCRIPTOR = Struct("<QIHH")
BUFFERS = 0x100000
"""The guest address where buffers lie; the rings are not in reach of a descriptor."""
Given: TypeAlias = tuple[int, int, int]
"""A descriptor without its place: address, length and flags."""


class Rig(ABC):
    """A queue, its driver, its device, and `size` bytes of buffers. `steps` counts the device's look-ups of buffers.

    The ring has been in use: `start` is the next available and used index, or position of a packed ring.
    """

    format: Format
    last: int
    """Indices are counted modulo this."""

    def __init__(
        self, size: int = 8, *, buffers: int = 1 << 16, start: int = 0, indirect: bool = True, read_only: bool = False
    ) -> None:
        self.size, self.steps = size, 0
        parts = [memoryview(bytearray(part)) for part in self.format.sizes(size)]
        self.descriptors, self.available, self.used = self.parts = (parts[0], parts[1], parts[2])
        self.buffers = memoryview(bytearray(buffers))
        if read_only:
            self.buffers = self.buffers.toreadonly()
        self.next = start
        self.set_up(start)
        self.driver = self.format.driver(size, *self.parts)
        self.driver._next = self.driver._seen = start
        self.device = self.new_device(self.base_at(start), indirect=indirect)

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        """The device half."""
        return self.format.device(self.size, *self.parts, memory=self, base=base, indirect=indirect)

    @abstractmethod
    def set_up(self, start: int) -> None:
        """Leave the ring as its use before `start` left it."""

    @abstractmethod
    def base_at(self, index: int) -> int:
        """The base of a device that goes on at `index`, with nothing in progress."""

    @abstractmethod
    def give(self, *chain: Given) -> int:
        """Make a chain available; what the device calls it."""

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

    @abstractmethod
    def describe(self, index: int, addr: int = BUFFERS, len: int = 1, flags: int = 0, next: int = 0) -> None:
        """Write one descriptor as a driver may, sane or not."""

    def raw_table(self, addr: int, *entries: tuple[int, int, int, int]) -> int:
        """Write an indirect table into the buffers, field by field; its bytes."""
        data = b"".join(DESCRIPTOR.pack(*entry) for entry in entries)
        self.buffers[addr - BUFFERS : addr - BUFFERS + len(data)] = data
        return len(data)

    @abstractmethod
    def table(self, addr: int, *entries: Given) -> int:
        """Write an indirect table of one chain; its bytes."""


class SplitRig(Rig):
    """A split virtqueue."""

    format = SPLIT
    last = 1 << 16

    def set_up(self, start: int) -> None:
        self.available[2:4] = self.used[2:4] = start.to_bytes(2, "little")
        self._free = 0

    def base_at(self, index: int) -> int:
        return index

    def give(self, *chain: Given) -> int:
        head = self._free % self.size
        for at, (addr, length, flags) in enumerate(chain):
            last = at + 1 == len(chain)
            index = (head + at) % self.size
            self.describe(index, addr, length, flags | (0 if last else NEXT), 0 if last else (index + 1) % self.size)
        self._free += len(chain)
        self.offer(head)
        return head

    def describe(self, index: int, addr: int = BUFFERS, len: int = 1, flags: int = 0, next: int = 0) -> None:
        self.descriptors[16 * index : 16 * index + 16] = DESCRIPTOR.pack(addr, len, flags, next)

    def table(self, addr: int, *entries: Given) -> int:
        last = len(entries) - 1
        return self.raw_table(
            addr, *((a, length, flags | (NEXT if at < last else 0), at + 1) for at, (a, length, flags) in enumerate(entries))
        )

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and publish them."""
        indices = self.available.cast("H")
        for head in heads:
            indices[2 + indices[1] % self.size] = head
            indices[1] = (indices[1] + 1) & 0xFFFF


def region_table(rig: Rig) -> RegionTable:
    """The buffers for a compiled half, in the two pieces of `Rig.slices`."""
    middle = rig.buffers.nbytes // 2
    return _native.walk.RegionTable([(BUFFERS, rig.buffers[:middle]), (BUFFERS + middle, rig.buffers[middle:])])


class CompiledRig(SplitRig):
    """The same with the compiled device half. `steps` counts what it leaves to the pure one, which is what is unusual."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        return _native.ring.SplitRing(self.size, *self.parts, self, region_table(self), base=base, indirect=indirect)


class GuardedRig(CompiledRig):
    """The same within guards, as for memory that may shrink."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        pure = FragileQueue(self.size, *ring_parts(self), self, base=base, indirect=indirect)
        return _native.ring.SplitRing(
            self.size, *self.parts, self, region_table(self), base=base, indirect=indirect, pure=pure
        )


def ring_parts(rig: Rig) -> tuple[RingPart, RingPart, RingPart]:
    """The parts of the ring, each with a copy."""
    first, second, third = (RingPart(address_of(part), part.nbytes, part) for part in rig.parts)
    return first, second, third


class PackedRig(Rig):
    """A packed virtqueue. Its indices are positions: slots in rounds of wrap counter 1, and size more in those of 0."""

    format = PACKED

    def set_up(self, start: int) -> None:
        self.last = 2 * self.size
        for slot in range(self.size):
            former = start - self.size + (slot - start) % self.size
            self.descriptors[16 * slot + 14 : 16 * slot + 16] = _flags(former % self.last, self.size, done=True)

    def base_at(self, index: int) -> int:
        half = index % self.size | (index < self.size) << 15
        return half << 16 | half

    def give(self, *chain: Given) -> int:
        first = self.next
        for at, (addr, length, flags) in reversed(list(enumerate(chain))):  # the device may look at any moment
            self.describe(at + first, addr, length, flags | (NEXT if at + 1 < len(chain) else 0), first % self.size)
        self.next = (first + len(chain)) % self.last
        return first % self.size

    def describe(self, index: int, addr: int = BUFFERS, len: int = 1, flags: int = 0, next: int = 0) -> None:
        """Make one descriptor available at a position, its flags last; `next` is its buffer id."""
        mark = int.from_bytes(_flags(index % self.last, self.size, done=False), "little")
        slot, whole = index % self.size, DESCRIPTOR.pack(addr, len, next, (flags | mark) & 0xFFFF)
        self.descriptors[16 * slot : 16 * slot + 14] = whole[:14]
        self.descriptors[16 * slot + 14 : 16 * slot + 16] = whole[14:]

    def table(self, addr: int, *entries: Given) -> int:
        return self.raw_table(addr, *((start, length, 0, flags) for start, length, flags in entries))


class CompiledPackedRig(PackedRig):
    """The same with the compiled device half; `steps` as in `CompiledRig`."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        return _native.packed.PackedRing(self.size, *self.parts, self, region_table(self), base=base, indirect=indirect)


class GuardedPackedRig(CompiledPackedRig):
    """The same within guards, as for memory that may shrink."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        pure = FragilePackedQueue(self.size, *ring_parts(self), self, base=base, indirect=indirect)
        return _native.packed.PackedRing(
            self.size, *self.parts, self, region_table(self), base=base, indirect=indirect, pure=pure
        )


class FragilePackedRig(PackedRig):
    """The same over a copy of the ring, as for memory that may shrink."""

    def new_device(self, base: int, *, indirect: bool) -> DeviceQueue:
        return FragilePackedQueue(self.size, *ring_parts(self), self, base=base, indirect=indirect)


def _flags(position: int, size: int, *, done: bool) -> bytes:
    """AVAIL and USED of a descriptor at `position` that is available, or done with."""
    wrap = position < size
    avail, used = wrap, wrap if done else not wrap
    return (avail * AVAIL | used * USED).to_bytes(2, "little")


SPLIT_RIGS: dict[str, type[SplitRig]] = {"split": SplitRig} | (
    {"compiled": CompiledRig, "compiled guarded": GuardedRig} if _native.accelerated else {}
)
PACKED_RIGS: dict[str, type[PackedRig]] = {"packed": PackedRig, "packed fragile": FragilePackedRig} | (
    {"packed compiled": CompiledPackedRig, "packed compiled guarded": GuardedPackedRig} if _native.accelerated else {}
)
RIGS: dict[str, type[Rig]] = {**SPLIT_RIGS, **PACKED_RIGS}
