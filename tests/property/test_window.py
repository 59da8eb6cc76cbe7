"""A window against a byte-per-page model and against what the kernel says is mapped, in both implementations."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.halves import HALVES, using
from tests.memory_map import modes
from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory.table import new_quota
from vhostuser.memory.window import Window
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.regions import Mapping

PAGE = 4096
PAGES = 12
QUOTA = 5
MODES = {None: "---p", False: "r--s", True: "rw-s"}
places, lengths = st.integers(0, PAGES), st.integers(0, PAGES // 2)
offsets = st.builds(lambda place, off: place * PAGE + off, places, st.sampled_from([0, 1, 7, PAGE - 1]))
sizes = st.sampled_from([0, 1, 2, PAGE - 1, PAGE, PAGE + 2, 3 * PAGE])


@dataclass
class File:
    """A file that a back-end shares, and all that is in it."""

    fd: int
    sealed: bool
    content: bytearray = field(default_factory=bytearray)

    @property
    def pages(self) -> int:
        return len(self.content) // PAGE


@dataclass(frozen=True)
class Page:
    """What one page of the window shows."""

    file: File = field(hash=False)
    number: int
    mapping: Mapping


class WindowModel(RuleBasedStateMachine):
    """`model` has an entry for each page of the window: a Page, or None where nothing may be."""

    @initialize(half=st.sampled_from(HALVES))
    def begin(self, half: str) -> None:
        with using(half):
            self.window = Window(3, PAGES * PAGE, new_quota("device", QUOTA))
        self.model: list[Page | None] = [None] * PAGES
        self.files = [self.new_file(sealed) for sealed in (False, False, True)]
        self.views: list[tuple[memoryview, File, int]] = []
        self.fds = len(os.listdir("/proc/self/fd"))

    def new_file(self, sealed: bool) -> File:
        file = File(os.memfd_create("file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), sealed)
        for page in range(PAGES):
            file.content += bytes([page + 1]) * PAGE
        os.write(file.fd, file.content)
        if sealed:
            fcntl.fcntl(file.fd, 1033, 2)
        return file

    def teardown(self) -> None:
        if hasattr(self, "window"):
            self.views.clear()
            self.window.close()
            for file in self.files:
                os.close(file.fd)

    @property
    def mappings(self) -> list[Mapping]:
        return list(dict.fromkeys(page.mapping for page in self.model if page))

    def pages_of(self, offset: int, size: int) -> list[Page | None]:
        return self.model[offset // PAGE : -(-(offset + size) // PAGE)] if size else []

    def expected(self, offset: int, size: int) -> bytes | None:
        """What reading the window gives; None if it faults."""
        pages = self.pages_of(offset, size)
        if offset + size > PAGES * PAGE or any(page is None or page.number >= page.file.pages for page in pages):
            return None
        shown = b"".join(bytes(p.file.content[p.number * PAGE : (p.number + 1) * PAGE]) for p in pages if p)
        return shown[offset % PAGE : offset % PAGE + size]

    @rule(place=places, length=lengths, number=places, which=st.integers(0, 2), write=st.booleans(), plain=st.booleans())
    def map(self, place: int, length: int, number: int, which: int, write: bool, plain: bool) -> None:
        file, request = self.files[which], Mmap(3, number * PAGE, place * PAGE, length * PAGE, int(write))
        fits = length > 0 and place + length <= PAGES and not any(self.model[place : place + length])
        fits = fits and number + length <= file.pages and len(self.mappings) < QUOTA
        if plain:
            assert self.window.core.map(file.fd, request.shm_offset, request.len, request.fd_offset, request.flags) is fits
        else:
            try:
                self.window.map(request, file.fd)
            except RemoteProtocolError:
                assert not fits
            else:
                assert fits
        if fits:
            made = Mapping(request.shm_offset, request.len, request.fd_offset, write)
            self.model[place : place + length] = [Page(file, number + at, made) for at in range(length)]

    @rule(place=places, length=lengths, exactly=st.booleans(), plain=st.booleans())
    def unmap(self, place: int, length: int, exactly: bool, plain: bool) -> None:
        there = self.model[place] if place < PAGES else None
        if exactly and there:
            place, length = there.mapping.shm_offset // PAGE, there.mapping.len // PAGE
        whole = there is not None and there.mapping[:2] == (place * PAGE, length * PAGE)
        if plain:
            assert self.window.core.unmap(place * PAGE, length * PAGE) is whole
        else:
            try:
                self.window.unmap(Mmap(3, 0, place * PAGE, length * PAGE))
            except RemoteProtocolError:
                assert not whole
            else:
                assert whole
        if whole:
            self.model[place : place + length] = [None] * length

    @rule()
    def reset(self) -> None:
        self.window.reset()
        self.model = [None] * PAGES

    @rule(which=st.integers(0, 1), pages=places)
    def truncate(self, which: int, pages: int) -> None:
        file = self.files[which]
        os.ftruncate(file.fd, pages * PAGE)
        file.content = file.content[: pages * PAGE].ljust(pages * PAGE, b"\0")

    @rule(offset=offsets, size=sizes)
    def read(self, offset: int, size: int) -> None:
        expected = self.expected(offset, size)
        try:
            assert self.window.read(offset, size) == expected
        except MemoryFault:
            assert expected is None

    @rule(offset=offsets, size=sizes, byte=st.integers(0, 255))
    def write(self, offset: int, size: int, byte: int) -> None:
        pages = self.pages_of(offset, size)
        fine = self.expected(offset, size) is not None and all(page and page.mapping.writable for page in pages)
        try:
            self.window.write(offset, bytes([byte]) * size)
        except MemoryFault:
            assert not fine
            self.reload()  # a part may have been written before a truncated page
            return
        assert fine
        for at in range(offset, offset + size):
            page = self.model[at // PAGE]
            if page:
                page.file.content[page.number * PAGE + at % PAGE] = byte

    def reload(self) -> None:
        for file in self.files:
            file.content[:] = os.pread(file.fd, len(file.content), 0)

    @precondition(lambda self: any(self.model))
    @rule(data=st.data(), unsafe=st.booleans(), start=st.sampled_from([0, 5, PAGE]))
    def view(self, data: st.DataObject, unsafe: bool, start: int) -> None:
        place = data.draw(st.sampled_from([at for at, page in enumerate(self.model) if page]))
        page = self.model[place]
        offset, end = place * PAGE + start, page.mapping.end if page else 0
        if page is None or offset >= end or page.number + (end - place * PAGE) // PAGE > page.file.pages:
            return
        try:
            view = self.window.view(offset, end - offset, unsafe=unsafe)
        except MemoryFault:
            assert not page.file.sealed
            assert not unsafe
            return
        assert page.file.sealed or unsafe
        assert view.readonly is not page.mapping.writable
        assert bytes(view) == self.expected(offset, end - offset)
        if page.file.sealed:
            self.views.append((view, page.file, page.number * PAGE + start))

    @invariant()
    def is_the_model(self) -> None:
        if not hasattr(self, "window"):
            return
        assert list(self.window.table) == self.mappings
        assert self.window.quota.used == len(self.mappings)
        shown = modes(self.window.base, self.window.base + self.window.size)
        assert shown == [MODES[page.mapping.writable if page else None] for page in self.model]
        assert len(os.listdir("/proc/self/fd")) == self.fds
        for view, file, at in self.views:
            assert view == file.content[at : at + view.nbytes]


TestWindowModel = WindowModel.TestCase
TestWindowModel.settings = settings(max_examples=60, stateful_step_count=30)
