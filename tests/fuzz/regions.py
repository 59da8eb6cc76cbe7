"""Whatever is mapped, unmapped, read and written, a window shows what a list of its pages says, in both implementations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.fuzz.taking import Taker
from tests.fuzz.watching import check, outcome_of, watched
from tests.halves import HALVES, using
from tests.memory_map import modes
from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory.table import new_quota
from vhostuser.memory.window import Window
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.regions import Mapping, remainders
from vhostuser.testing import memory_file, read_only
from vhostuser.transport.fds import OwnedFd

PAGE: Final = 4096
PAGES: Final = 8
SIZE: Final = PAGES * PAGE
QUOTA: Final = 4
STEPS: Final = 40
MODES: Final = {None: "---p", False: "r--s", True: "rw-s"}


@dataclass(frozen=True)
class File:
    """What a back-end shares: pages of a file, or something that is no such file."""

    fd: int
    pages: int
    readable: bool = True
    writable: bool = True


@contextlib.contextmanager
def _files() -> Iterator[list[File]]:
    with contextlib.ExitStack() as stack:
        sealed, plain = stack.enter_context(memory_file(PAGES)), stack.enter_context(memory_file(3, seal=False))
        reads, writes = (stack.enter_context(OwnedFd(fd)) for fd in os.pipe())
        others = [os.open("/", os.O_PATH), os.open("/dev/zero", os.O_RDWR), os.eventfd(0)]
        kinds = [reads, writes, *(stack.enter_context(OwnedFd(fd)) for fd in others)]
        only = stack.enter_context(read_only(sealed))
        blind = stack.enter_context(OwnedFd(os.open(f"/proc/self/fd/{plain.fileno()}", os.O_WRONLY)))
        yield [
            File(sealed.fileno(), PAGES),
            File(plain.fileno(), 3),
            File(only.fileno(), PAGES, writable=False),
            File(blind.fileno(), 3, readable=False),
            *(File(kind.fileno(), 0) for kind in kinds),
        ]


class Half:
    """A window of one implementation, and the page list that says what it is to be like."""

    def __init__(self, half: str, files: list[File]) -> None:
        self.files = files
        self.pages: list[tuple[Mapping, int] | None] = [None] * PAGES
        """For each page the mapping that it belongs to, and the byte that it is full of."""
        with using(half):
            self.window = Window(3, SIZE, new_quota("device", QUOTA))

    @property
    def mappings(self) -> list[Mapping]:
        """What the pages say is mapped."""
        return list(dict.fromkeys(page[0] for page in self.pages if page))

    def step(self, taker: Taker) -> object:
        """One operation; what came of it."""
        what = taker.byte() % 8
        if what < 3:
            return self.map(taker, plain=what == 2)
        if what < 5:
            return self.unmap(taker, plain=what == 4)
        if what == 5:
            return self.read(_at(taker), taker.below(3 * PAGE))
        if what == 6:
            return self.look(_at(taker), taker.below(3 * PAGE))
        self.window.reset()
        self.pages = [None] * PAGES
        return None

    def map(self, taker: Taker, *, plain: bool) -> object:
        """SHMEM_MAP, in the short way or the long one."""
        file, flags = taker.pick(self.files), taker.number(8) if taker.rarely() else taker.below(2)
        body = Mmap(3, _at(taker), _at(taker), _length(taker), flags)
        fits = _is_plain(body, file) and len(self.mappings) < QUOTA
        place, count, first = body.shm_offset // PAGE, body.len // PAGE, body.fd_offset // PAGE
        fits = fits and not any(self.pages[place : place + count])
        if plain:
            fields = body.shm_offset, body.len, body.fd_offset, body.flags
            made: object = self.window.core.map(file.fd, *fields)
            check(made is fits, "the short way", body, made)
        else:
            made, why = outcome_of(lambda: self.window.map(body, file.fd), RemoteProtocolError, OSError)
            check(isinstance(made, Mapping) is fits, "the long way", body, made, why)
        if fits:
            mapping = Mapping(body.shm_offset, body.len, body.fd_offset, bool(flags))
            self.pages[place : place + count] = [(mapping, first + at) for at in range(count)]
        return made

    def unmap(self, taker: Taker, *, plain: bool) -> object:
        """SHMEM_UNMAP, the same; mostly of what is there."""
        offset, size = _at(taker), _length(taker)
        if not taker.rarely() and (there := self.mappings):
            offset, size = there[offset // PAGE % len(there)][:2]
        whole = any(mapping[:2] == (offset, size) for mapping in self.mappings)
        gone: object
        if plain:
            gone = self.window.core.unmap(offset, size)
            check(gone is whole, "the short way", offset, size)
        else:
            gone, why = outcome_of(lambda: self.window.unmap(Mmap(3, 0, offset, size)), RemoteProtocolError)
            check(isinstance(gone, Mapping) is whole, "the long way", offset, size, why)
        if whole:
            self.pages[offset // PAGE : (offset + size) // PAGE] = [None] * (size // PAGE)
        return gone

    def read(self, offset: int, size: int) -> object:
        """Bytes of the window: those of the pages, or a fault if one of them is not there."""
        touched = self.pages[offset // PAGE : -(-(offset + size) // PAGE)] if size else []
        there = offset + size <= SIZE and all(touched)
        expected = b"".join(bytes([page[1]]) * PAGE for page in touched if page)[offset % PAGE :][:size]
        got, why = outcome_of(lambda: self.window.read(offset, size), MemoryFault)
        check(got == (expected if there else "MemoryFault"), "read", offset, size, why)
        return got

    def look(self, offset: int, size: int) -> list[Mapping | object]:
        """What the table says of a range, against every mapping looked at in turn."""
        table, touching = self.window.table, [m for m in self.mappings if m.shm_offset < offset + size and offset < m.end]
        touching = touching if size else []
        if size:
            check(table.covering(offset, size) == touching, "covering", offset, size)
            check(table.overlapping(offset, size) == (touching[0] if touching else None), "overlapping", offset, size)
        exact = next((m for m in self.mappings if m[:2] == (offset, size)), None)
        check(table.exact(offset, size) == exact, "exact", offset, size)
        for mapping in touching:
            _check_rest(mapping, offset, size)
        return [exact, *touching]

    def settle(self) -> None:
        """The table, the quota and the kernel say what the pages say."""
        check(list(self.window.table) == self.mappings, "the table", self.mappings)
        check(self.window.quota.used == len(self.mappings), "the quota")
        shown = modes(self.window.base, self.window.base + SIZE)
        check(shown == [MODES[page[0].writable if page else None] for page in self.pages], "the kernel", shown)


def one_input(data: bytes) -> None:
    """The same operations in each implementation."""
    with watched(), _files() as files:
        seen = []
        for half in HALVES:
            side, taker = Half(half, files), Taker(data)
            try:
                seen.append([side.step(taker) for _ in range(STEPS) if taker.left])
                side.settle()
            finally:
                side.window.close()
        check(seen == seen[:1] * len(seen), "the implementations differ", seen)


def _at(taker: Taker) -> int:
    """An offset: mostly of a page of the window."""
    how = taker.byte()
    return how % (PAGES + 2) * PAGE if how < 220 else how % PAGES * PAGE + 7 if how < 240 else taker.number(8)


def _length(taker: Taker) -> int:
    how = taker.byte()
    return how % 5 * PAGE if how < 220 else taker.number(8)


def _is_plain(body: Mmap, file: File) -> bool:
    """All that a mapping needs, but for room."""
    whole = not (body.shm_offset | body.len | body.fd_offset) % PAGE and body.len > 0 and body.flags <= 1
    inside = body.shm_offset + body.len <= SIZE and body.fd_offset + body.len <= file.pages * PAGE
    return whole and inside and file.readable and (file.writable or not body.flags)


def _check_rest(mapping: Mapping, offset: int, size: int) -> None:
    """What is left of a mapping outside a range, page by page."""
    pieces = remainders(mapping, offset - offset % PAGE, -(-(offset % PAGE + size) // PAGE) * PAGE)
    left = {page for piece in pieces for page in range(piece.shm_offset, piece.end, PAGE)}
    start, end = offset - offset % PAGE, -(-(offset + size) // PAGE) * PAGE
    check(left == {p for p in range(mapping.shm_offset, mapping.end, PAGE) if not start <= p < end}, "remainders", mapping)
    shifts = {piece.fd_offset - piece.shm_offset for piece in pieces}
    check(shifts <= {mapping.fd_offset - mapping.shm_offset}, "remainders show other bytes", mapping)
