"""Guest memory as a bystander reads it: mapped read-only, and never touched but by copies that survive its end."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from ..errors import MemoryFault
from ..memory.guest import span
from ..memory.mapping import block_size, fill, map_file, start_of
from ..protocol.payloads import MemoryRegion


class SeenRegion:
    """A region of the front-end's, mapped here. OSError if that can't be done, MemoryFault if the file is shorter."""

    def __init__(self, region: MemoryRegion, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise MemoryFault(f"memory at {region.guest_addr:#x} is no file")
        end = region.mmap_offset + region.size
        if not region.size or end > status.st_size:
            text = f"memory at {region.guest_addr:#x}: {region.size:#x} bytes at {region.mmap_offset:#x}"
            raise MemoryFault(f"{text} are not in a file of {status.st_size:#x}")
        start, length, skip = span(region.mmap_offset, region.size, block_size(fd))
        self._mapped = map_file(fd, length, start, writable=False)
        self.address = start_of(self._mapped) + skip
        """Where it lies in this process, as long as this object lives."""
        self.guest_addr, self.user_addr, self.size = region.guest_addr, region.user_addr, region.size


class RingMemory:
    """A table of regions that does not change: another one takes its place."""

    def __init__(self, regions: Iterable[SeenRegion] = ()) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_addr))
        self._starts = [region.guest_addr for region in self.regions]

    def plus(self, region: SeenRegion) -> RingMemory:
        """This table and one region more ("ADD_MEM_REG")."""
        return RingMemory([*self.regions, region])

    def minus(self, guest_addr: int) -> RingMemory:
        """This table without the region at a guest address ("REM_MEM_REG")."""
        return RingMemory(region for region in self.regions if region.guest_addr != guest_addr)

    def read(self, guest_addr: int, len: int) -> bytes:
        """Bytes at a guest address, of one region or of several that adjoin. MemoryFault where there are none."""
        pieces = []
        while len > 0:
            at = bisect_right(self._starts, guest_addr) - 1
            offset = guest_addr - self._starts[at] if at >= 0 else 0
            size = min(len, self.regions[at].size - offset) if at >= 0 else 0
            if size <= 0:
                raise MemoryFault(f"no guest memory at {guest_addr:#x}")
            pieces.append(copied(self.regions[at].address + offset, size))
            guest_addr, len = guest_addr + size, len - size
        return b"".join(pieces)

    def part(self, addr: int, len: int, *, by_guest: bool) -> Part:
        """A part of a ring at a user address, or a guest address ("GPA_ADDRESSES"). MemoryFault if no region has it all."""
        for region in self.regions:
            offset = addr - (region.guest_addr if by_guest else region.user_addr)
            if offset >= 0 and offset + len <= region.size:
                return Part(region, region.address + offset, len)
        raise MemoryFault(f"no region has {len:#x} bytes at {'guest' if by_guest else 'user'} address {addr:#x}")


class Part:
    """A part of a ring; its region stays mapped as long as this lives."""

    __slots__ = ("_region", "address", "size")

    def __init__(self, region: SeenRegion, address: int, size: int) -> None:
        self._region, self.address, self.size = region, address, size

    def read(self, start: int = 0, size: int = -1) -> bytes:
        """Some bytes of it, or all. MemoryFault if they are gone."""
        return copied(self.address + start, self.size if size < 0 else size)


def copied(address: int, len: int) -> bytes:
    """Bytes at an address of this process. MemoryFault where a page is missing."""
    buffer = bytearray(len)
    fill(buffer, address)
    return bytes(buffer)


def first_bytes(memory: RingMemory, buffers: Sequence[tuple[int, int]], most: int) -> bytes:
    """The first bytes of buffers (guest address, length), `most` at most; only those before a place where there are none."""
    data = b""
    for address, length in buffers:
        if len(data) == most:
            break
        try:
            data += memory.read(address, min(length, most - len(data)))
        except MemoryFault:
            break
    return data


def last_byte(memory: RingMemory, buffers: Sequence[tuple[int, int]]) -> bytes:
    """The last byte of buffers; nothing if there is none."""
    for address, length in reversed(buffers):
        if length:
            try:
                return memory.read(address + length - 1, 1)
            except MemoryFault:
                return b""
    return b""
