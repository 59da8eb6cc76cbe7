"""Guest memory: the regions that a front-end shares, and translation of guest and user addresses into them."""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ..errors import MemoryFault, RemoteProtocolError
from ..protocol.payloads import MemoryRegion
from .fragile import Copies, FragileView, Placed, RingPart
from .mapping import address_of, block_size, map_file, may_shrink, start_of


@dataclass(frozen=True, slots=True)
class GuestRegion:
    """One region: where the guest and the front-end see it, and its bytes here."""

    guest_addr: int
    user_addr: int
    view: memoryview | FragileView
    identity: tuple[int, ...]
    """What makes a later region the same one: its description, and its file."""
    address: int = 0
    """Where its first byte lies in this process."""

    @property
    def fragile(self) -> bool:
        """Its file may shrink."""
        return isinstance(self.view, FragileView)

    @property
    def offset(self) -> int:
        """Where in its file it begins."""
        return self.identity[3]

    @property
    def file(self) -> tuple[int, int]:
        """Its file's st_dev and st_ino."""
        return self.identity[4], self.identity[5]

    @property
    def bare(self) -> memoryview:
        """Its bytes themselves."""
        return self.view.bare if isinstance(self.view, FragileView) else self.view


class Span(NamedTuple):
    """What to map of a file so that a region is in it: whole blocks; and how many of its bytes come before the region."""

    start: int
    len: int
    skip: int


def span(offset: int, size: int, block: int) -> Span:
    """The whole blocks around `size` bytes at `offset`. hugetlbfs takes no other, neither for mmap nor for munmap."""
    skip = offset % block
    return Span(offset - skip, -(-(skip + size) // block) * block, skip)


def map_region(
    region: MemoryRegion, fd: int, known: Iterable[GuestRegion] = (), copies: Copies | None = None
) -> GuestRegion:
    """Map the region that the front-end describes, or take the one of `known` that is the same.

    If its file may shrink it is fragile; `copies` counts what is copied of it. RemoteProtocolError if the file is shorter
    than the region or can't be mapped.
    """
    fragile, status = may_shrink(fd), os.fstat(fd)  # in this order: what was sealed before keeps the size that is seen now
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    identity = (
        region.guest_addr, region.size, region.user_addr, region.mmap_offset, status.st_dev, status.st_ino, access
    )  # fmt: skip
    for other in known:
        if other.identity == identity:
            return other
    end = region.mmap_offset + region.size
    if end > status.st_size:
        text = f"memory region of size {region.size:#x} at mmap_offset {region.mmap_offset:#x} passes the file's end"
        raise RemoteProtocolError(f"{text} {status.st_size:#x}", field="size", value=region.size, limit=status.st_size)
    mapped, skip = _map(region, fd)
    address, view = start_of(mapped) + skip, mapped[skip : skip + region.size]
    shown = FragileView(view, address, copies or Copies()) if fragile else view
    return GuestRegion(region.guest_addr, region.user_addr, shown, identity, address)


def _map(region: MemoryRegion, fd: int) -> tuple[memoryview, int]:
    """The blocks that hold the region, mapped, read-only if its fd is; and where in them it begins."""
    try:
        start, length, skip = span(region.mmap_offset, region.size, block_size(fd))
        try:
            return map_file(fd, length, start), skip
        except PermissionError:
            return map_file(fd, length, start, writable=False), skip
    except OSError as error:
        text = f"memory region at {region.guest_addr:#x} can't be mapped: {error}"
        raise RemoteProtocolError(text, field="fd", value=region.guest_addr) from None


class GuestMemory:
    """A table of regions that does not change: another one takes its place."""

    def __init__(self, regions: Sequence[GuestRegion] = ()) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_addr))
        self._guest_starts = [region.guest_addr for region in self.regions]
        self._by_user = sorted(self.regions, key=lambda region: region.user_addr)
        self._user_starts = [region.user_addr for region in self._by_user]
        self._by_address = sorted(self.regions, key=lambda region: region.address)
        self._addresses = [region.address for region in self._by_address]
        self.fragile = any(region.fragile for region in self.regions)
        """A region's file may shrink: buffers in it are copies."""

    @classmethod
    def of(
        cls, regions: Sequence[MemoryRegion], fds: Sequence[int], known: Self | None = None, copies: Copies | None = None
    ) -> Self:
        """The table of SET_MEM_TABLE; mappings that `known` has already are kept."""
        old = known.regions if known else ()
        return cls([map_region(region, fd, old, copies) for region, fd in zip(regions, fds, strict=True)])

    def plus(self, region: MemoryRegion, fd: int, copies: Copies | None = None) -> GuestMemory:
        """This table and one region more ("ADD_MEM_REG")."""
        return GuestMemory([*self.regions, map_region(region, fd, (), copies)])

    def minus(self, guest_addr: int) -> GuestMemory:
        """This table without the region at a guest address ("REM_MEM_REG")."""
        return GuestMemory([region for region in self.regions if region.guest_addr != guest_addr])

    @property
    def solid(self) -> list[tuple[int, memoryview]]:
        """Guest address and bytes of each region that is not fragile: those that compiled code may touch."""
        return [(region.guest_addr, region.view) for region in self.regions if isinstance(region.view, memoryview)]

    @property
    def shown(self) -> list[tuple[int, memoryview | FragileView]]:
        """The same of all regions: for compiled code that survives the end of one that is fragile."""
        return [(region.guest_addr, region.view) for region in self.regions]

    def bare_at_user(self, user_addr: int, len: int) -> memoryview:
        """The bytes of a ring at a user address, fragile or not, for such code. MemoryFault if no region has them."""
        region, offset = self._by_user_addr(user_addr, len)
        return region.bare[offset : offset + len]

    @property
    def end(self) -> int:
        """The guest address behind the last region."""
        return self.regions[-1].guest_addr + self.regions[-1].view.nbytes if self.regions else 0

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
        """The bytes of a ring at a user address, in one region that is not fragile. MemoryFault if they are not.

        A ring that lies across two regions is refused: each is mapped where the kernel liked, and a ring is one piece.
        """
        region, offset = self._by_user_addr(user_addr, len)
        if isinstance(region.view, FragileView):
            raise MemoryFault(f"memory at user address {user_addr:#x} may shrink: there is no view of it")
        return region.view[offset : offset + len]

    def ring_part(self, user_addr: int, len: int) -> RingPart:
        """The same, for memory that may be fragile."""
        region, offset = self._by_user_addr(user_addr, len)
        return RingPart(region.address + offset, len, region.view)

    def _by_user_addr(self, user_addr: int, len: int) -> tuple[GuestRegion, int]:
        at = bisect_right(self._user_starts, user_addr) - 1
        if at >= 0:
            region, offset = self._by_user[at], user_addr - self._user_starts[at]
            if offset + len <= region.view.nbytes:
                return region, offset
        raise MemoryFault(f"no region has {len:#x} bytes at user address {user_addr:#x}")

    def homes(self, views: Iterable[memoryview]) -> Iterator[tuple[int, int]]:
        """Guest address and bytes of each view, writable, that `slices` gave."""
        for view in views:
            address = view.obj.address if isinstance(view.obj, Placed) else address_of(view)
            region = self._by_address[bisect_right(self._addresses, address) - 1]
            yield region.guest_addr + address - region.address, view.nbytes
