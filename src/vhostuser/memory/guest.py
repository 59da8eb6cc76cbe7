"""Guest memory: the regions that a front-end shares, and translation of guest and user addresses into them."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import MemoryFault, RemoteProtocolError
from ..protocol.payloads import MemoryRegion
from .mapping import map_file


@dataclass(frozen=True, slots=True)
class GuestRegion:
    """One region: where the guest and the front-end see it, and its bytes here."""

    guest_addr: int
    user_addr: int
    view: memoryview
    identity: tuple[int, ...]
    """What makes a later region the same one: its description, and its file."""


def map_region(region: MemoryRegion, fd: int, known: Iterable[GuestRegion] = ()) -> GuestRegion:
    """Map the region that the front-end describes, or take the one of `known` that is the same.

    RemoteProtocolError if the file is shorter than the region or can't be mapped.
    """
    status = os.fstat(fd)
    identity = (
        region.guest_addr, region.size, region.user_addr, region.mmap_offset, status.st_dev, status.st_ino
    )  # fmt: skip
    for other in known:
        if other.identity == identity:
            return other
    end = region.mmap_offset + region.size
    if end > status.st_size:
        text = f"memory region of size {region.size:#x} at mmap_offset {region.mmap_offset:#x} passes the file's end"
        raise RemoteProtocolError(f"{text} {status.st_size:#x}", field="size", value=region.size, limit=status.st_size)
    return GuestRegion(region.guest_addr, region.user_addr, _map(region, fd), identity)


def _map(region: MemoryRegion, fd: int) -> memoryview:
    """The region's bytes, mapped from the page boundary below its offset; read-only if its fd is."""
    skip = region.mmap_offset % mmap.PAGESIZE
    start, length = region.mmap_offset - skip, region.size + skip
    try:
        try:
            view = map_file(fd, length, start)
        except PermissionError:
            view = map_file(fd, length, start, writable=False)
    except OSError as error:
        text = f"memory region at {region.guest_addr:#x} can't be mapped: {error}"
        raise RemoteProtocolError(text, field="fd", value=region.guest_addr) from None
    return view[skip:]


class GuestMemory:
    """A table of regions that does not change: another one takes its place."""

    def __init__(self, regions: Sequence[GuestRegion] = ()) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_addr))
        self._guest_starts = [region.guest_addr for region in self.regions]
        self._by_user = sorted(self.regions, key=lambda region: region.user_addr)
        self._user_starts = [region.user_addr for region in self._by_user]

    @classmethod
    def of(cls, regions: Sequence[MemoryRegion], fds: Sequence[int], known: Self | None = None) -> Self:
        """The table of SET_MEM_TABLE; mappings that `known` has already are kept."""
        old = known.regions if known else ()
        return cls([map_region(region, fd, old) for region, fd in zip(regions, fds, strict=True)])

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        """The bytes at a guest address, one view a region that they cross. MemoryFault where no region is."""
        found: list[memoryview] = []
        while len:
            at = bisect_right(self._guest_starts, guest_addr) - 1
            region = self.regions[at] if at >= 0 else None
            offset = guest_addr - region.guest_addr if region else 0
            piece = region.view[offset : offset + len] if region else b""
            if not piece:
                raise MemoryFault(f"no guest memory at {guest_addr:#x}")
            found.append(memoryview(piece))
            guest_addr, len = guest_addr + piece.__len__(), len - piece.__len__()
        return found

    def at_user(self, user_addr: int, len: int) -> memoryview:
        """The bytes at a user address of the front-end, in one region. MemoryFault if they are not."""
        at = bisect_right(self._user_starts, user_addr) - 1
        if at >= 0:
            offset = user_addr - self._by_user[at].user_addr
            view = self._by_user[at].view[offset : offset + len]
            if view.nbytes == len:
                return view
        raise MemoryFault(f"no region has {len:#x} bytes at user address {user_addr:#x}")
