"""A guest address or a user address leads to the bytes that a look at every region in turn finds, or to a MemoryFault."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from tests.fuzz.taking import Taker
from tests.fuzz.watching import check, outcome_of, watched
from vhostuser.errors import MemoryFault, ProtocolError, RemoteProtocolError
from vhostuser.memory.guest import GuestMemory
from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable, SingleRegion
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Role, State
from vhostuser.testing import memory_file, read_only
from vhostuser.transport.fds import OwnedFd, close_all

Q = FrontendRequest
PAGE: Final = 4096
PAGES: Final = 4
STEPS: Final = 40
TOP: Final = 1 << 64
STARTS: Final = (0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 8 * PAGE, TOP - PAGE, TOP - 2 * PAGE, TOP - 3 * PAGE)
CONTENT: Final = [bytes((at * 7 + at // 256 + 101 * file) % 256 for at in range(PAGES * PAGE)) for file in range(2)]
Known = tuple[MemoryRegion, int]
"""A region, and which file it is of."""


@dataclass
class Table:
    """The memory of a back-end, the session that guards it, and all that the model needs: the regions in any order."""

    files: list[OwnedFd]
    contents: list[bytearray]
    session: Session
    memory: GuestMemory = field(default_factory=GuestMemory)
    known: list[Known] = field(default_factory=list)

    def byte(self, address: int, *, user: bool) -> tuple[int, int] | None:
        """The file and the offset of the byte at an address."""
        for region, file in self.known:
            start = region.user_addr if user else region.guest_addr
            if start <= address < start + region.size:
                return file, region.mmap_offset + address - start
        return None

    def admits(self, request: FrontendRequest, body: Payload, count: int) -> bool:
        """The session takes a change of memory, as it does before anything is mapped."""
        try:
            self.session.admit(Channel.FRONTEND, request_frame(request, body, range(count)))
        except ProtocolError:
            return False
        return True

    def replace(self, regions: list[Known]) -> None:
        """SET_MEM_TABLE."""
        bodies, before = [region for region, _ in regions], self.session.state
        if not self.admits(Q.SET_MEM_TABLE, MemoryTable(bodies), len(bodies)):
            return
        fds = [self.files[file].fileno() for _, file in regions]
        self._take(lambda: GuestMemory.of(bodies, fds, self.memory), regions, before)

    def plus(self, region: MemoryRegion, file: int) -> None:
        """ADD_MEM_REG."""
        before = self.session.state
        if self.admits(Q.ADD_MEM_REG, _single(region), 1):
            fd = self.files[file].fileno()
            self._take(lambda: self.memory.plus(region, fd), [*self.known, (region, file)], before)

    def minus(self, region: MemoryRegion) -> None:
        """REM_MEM_REG."""
        there = [row for row in self.known if _key(row[0]) == _key(region)]
        check(self.admits(Q.REM_MEM_REG, _single(region), 0) is bool(there), "REM_MEM_REG", region)
        if there:
            self.memory = self.memory.minus(region.guest_addr)
            self.known.remove(there[0])

    def _take(self, make: object, regions: list[Known], before: State) -> None:
        made, why = outcome_of(make, RemoteProtocolError)  # type: ignore[arg-type]  # a function
        inside = all(row.mmap_offset + row.size <= len(self.contents[file]) for row, file in regions)
        check(isinstance(made, GuestMemory) is inside, "a region and its file", regions, why)
        if isinstance(made, GuestMemory):
            self.memory, self.known = made, regions
        else:
            self.session.state = before

    def translate(self, address: int, size: int) -> None:
        """`slices`, byte by byte."""
        found, why = outcome_of(lambda: [bytes(piece) for piece in self.memory.slices(address, size)], MemoryFault)
        expected = self.bytes_at(address, size)
        if expected is None:
            check(found == "MemoryFault", "there is no such memory", address, size)
            return
        check(isinstance(found, list) and b"".join(found) == expected, "slices", address, size, why)

    def bytes_at(self, address: int, size: int) -> bytes | None:
        """The bytes at a guest address, from one border of a region to the next; None if one of them is not there."""
        borders = {edge for region, _ in self.known for edge in (region.guest_addr, region.guest_addr + region.size)}
        cuts = [address, *sorted(edge for edge in borders if address < edge < address + size), address + size]
        found = b""
        for start, end in pairwise(cuts if size else []):
            if (place := self.byte(start, user=False)) is None:
                return None
            found += self.contents[place[0]][place[1] : place[1] + end - start]
        return found

    def lay(self, address: int, size: int) -> None:
        """A ring at a user address: in one region, or a fault."""
        inside = [
            row for row in self.known if row[0].user_addr <= address and address + size <= row[0].user_addr + row[0].size
        ]
        part, why = outcome_of(lambda: self.memory.ring_part(address, size), MemoryFault)
        if part == "MemoryFault":
            check(not inside or self._hidden(inside), "there is memory for a ring", address, size, why)
            return
        part = self.memory.ring_part(address, size)
        part.refresh()
        options = [self.contents[file][r.mmap_offset + address - r.user_addr :][:size] for r, file in inside]
        check(bytes(part.copy) in map(bytes, options), "a ring is elsewhere", address, size)

    def _hidden(self, inside: list[Known]) -> bool:
        """Regions may lie over each other in user addresses: the one that begins last is asked only."""
        return any(
            other.user_addr < row.user_addr + row.size and row.user_addr < other.user_addr + other.size
            for row, _ in inside
            for other, _ in self.known
            if other != row
        )

    def write(self, address: int, data: bytes) -> None:
        """Bytes through the views of memory that can't shrink are in the file, in its place."""
        try:
            views = self.memory.slices(address, len(data))
        except MemoryFault:
            return
        if self.memory.fragile or any(view.readonly for view in views):
            return
        done = 0
        for view in views:
            view[:] = data[done : done + view.nbytes]
            done += view.nbytes
        homes = list(self.memory.homes(views))
        check(sum(size for _, size in homes) == len(data), "homes", homes)
        check([at for at, _ in homes[:1]] == [address] * bool(data), "homes", homes)
        for at, value in enumerate(data):
            if place := self.byte(address + at, user=False):
                self.contents[place[0]][place[1]] = value


def one_input(data: bytes) -> None:
    """Change a table, and look things up in it."""
    taker = Taker(data)
    with watched():
        solid = [taker.flag() for _ in range(2)]
        files = [memory_file(PAGES, fill=CONTENT[number], seal=seal) for number, seal in enumerate(solid)]
        files.append(read_only(files[0]))
        first = bytearray(CONTENT[0])
        table = Table(files, [first, bytearray(CONTENT[1]), first], _session())
        try:
            for _ in range(STEPS):
                if taker.left:
                    _step(table, taker)
        finally:
            close_all(files)
            del table


def _step(table: Table, taker: Taker) -> None:
    what = taker.byte() % 8
    if what == 0:
        table.replace([_region(taker) for _ in range(1 + taker.below(4))])
    elif what == 1:
        table.plus(*_region(taker))
    elif what == 2:
        table.minus(taker.pick(table.known)[0] if table.known and not taker.rarely() else _region(taker)[0])
    elif what <= 4:
        table.translate(_address(taker), taker.below(2 * PAGE) if taker.rarely() else taker.below(256))
    elif what <= 6:
        table.lay(_address(taker), taker.below(2 * PAGE) if taker.rarely() else taker.below(256))
    else:
        table.write(_address(taker), taker.some(20))


def _session() -> Session:
    feature = 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS
    return Session(Role.BACKEND, State(protocol_offered=feature, protocol_acknowledged=feature, max_slots=6))


def _region(taker: Taker) -> Known:
    starts = [taker.number(8) if taker.rarely() else taker.pick(STARTS) for _ in range(2)]
    size = taker.number(8) if taker.rarely() else (1 + taker.below(2)) * PAGE
    offset = taker.number(8) if taker.rarely() else taker.below(4) * PAGE
    return MemoryRegion(starts[0], size, starts[1], offset), taker.below(3)


def _address(taker: Taker) -> int:
    """An address: mostly one near the border of a page that may be there."""
    how = taker.byte()
    if how >= 240:
        return taker.number(8)
    return (STARTS[how % len(STARTS)] + (0, 1, PAGE - 1, PAGE - 100, 100)[taker.below(5)]) % TOP


def _single(region: MemoryRegion) -> SingleRegion:
    return SingleRegion(region.guest_addr, region.size, region.user_addr, region.mmap_offset)


def _key(region: MemoryRegion) -> tuple[int, int, int]:
    return region.guest_addr, region.size, region.user_addr
