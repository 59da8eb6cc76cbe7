"""A window, of copies or of files themselves: whatever is done, the guest sees the file, and the file gets the stores."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.devices.fs.windowed import PAGE, Guest, HostFile, direct_window_of, window_of
from vhostuser.devices.fs.dax.copied_file import CopiedFile

PAGES = 8
PLACES = st.integers(0, PAGES - 1)
COUNTS = st.integers(1, PAGES)
FILES = st.integers(0, 1)
BYTES = st.binary(min_size=1, max_size=200)
SIZES = st.integers(0, 6 * PAGE)
"""Of files, in bytes of a window whose unit is a page."""


class Dax(RuleBasedStateMachine):
    """Two files, each shown in any part of the window, as Linux does: no byte of a file in two places."""

    unit: ClassVar[int] = PAGE

    @staticmethod
    def opened() -> AbstractContextManager[Guest]:
        """The window."""
        return window_of(PAGES)

    def __init__(self) -> None:
        super().__init__()
        self._opened = ExitStack()
        self.guest: Guest = self._opened.enter_context(self.opened())
        folder = self._opened.enter_context(tempfile.TemporaryDirectory())
        self.files = [HostFile(f"{folder}/{at}", (7, at)) for at in range(2)]
        self.truth = [bytearray() for _ in self.files]
        self.places: list[tuple[int, int, bool] | None] = [None] * PAGES

    def teardown(self) -> None:
        self._opened.close()

    @initialize(sizes=st.tuples(SIZES, SIZES))
    def make(self, sizes: tuple[int, int]) -> None:
        for file, truth, size in zip(self.files, self.truth, sizes, strict=True):
            truth[:] = bytes(1 + at % 250 for at in range(self.scaled(size)))
            with open(file.path, "wb") as host:
                host.write(truth)

    def scaled(self, size: int) -> int:
        """The size, in a window of larger units."""
        return size * self.unit // PAGE

    @rule(which=FILES, foffset=PLACES, moffset=PLACES, count=COUNTS, writable=st.booleans())
    def setup(self, which: int, foffset: int, moffset: int, count: int, writable: bool) -> None:
        count = min(count, PAGES - moffset)
        elsewhere = self.places[:moffset] + self.places[moffset + count :]
        if any(place and place[0] == which and foffset <= place[1] < foffset + count for place in elsewhere):
            return
        self.guest.show(self.files[which], foffset, moffset, count, writable=writable)
        for at in range(count):
            self.places[moffset + at] = (which, foffset + at, writable)

    @rule(moffset=PLACES, count=COUNTS)
    def remove(self, moffset: int, count: int) -> None:
        count = min(count, PAGES - moffset)
        self.guest.remove(moffset, count)
        self.places[moffset : moffset + count] = [None] * count

    @rule(moffset=PLACES, at=SIZES, data=BYTES)
    def store(self, moffset: int, at: int, data: bytes) -> None:
        """The guest stores by mmap; below the file's end, since what is behind it is nobody's."""
        place = self.places[moffset]
        if not place or not place[2]:
            return
        which, page, _ = place
        at %= self.unit
        start = page * self.unit + at
        data = data[: max(0, min(self.unit - at, len(self.truth[which]) - start))]
        if data:
            self.guest.store(moffset, data, at)
            self.truth[which][start : start + len(data)] = data

    @rule(which=FILES, offset=SIZES, data=BYTES)
    def write(self, which: int, offset: int, data: bytes) -> None:
        """A WRITE of the guest."""
        key, window, truth = self.files[which].key, self.guest.window, self.truth[which]
        offset = self.scaled(offset)
        self.guest.do(lambda: window.before(key, offset, offset))
        with self.files[which].open(os.O_RDWR) as fd:
            os.pwrite(fd.fileno(), data, offset)
        self.guest.do(lambda: window.after(key, offset, offset + len(data)))
        truth.extend(bytes(max(0, offset - len(truth))))
        truth[offset : offset + len(data)] = data

    @rule(which=FILES, size=SIZES)
    def truncate(self, which: int, size: int) -> None:
        size, truth = self.scaled(size), self.truth[which]
        self.guest.truncate(self.files[which], size)
        truth[:] = truth[:size].ljust(size, b"\0")

    @rule(which=FILES)
    def read(self, which: int) -> None:
        """A READ of the guest, or an FSYNC, and then whoever reads on the host."""
        key, window = self.files[which].key, self.guest.window
        self.guest.do(lambda: window.write_back(key))
        with open(self.files[which].path, "rb") as host:
            assert host.read() == self.truth[which]

    @rule()
    def end(self) -> None:
        """DESTROY, and another session."""
        self.guest.do(self.guest.window.end)
        self.places = [None] * PAGES
        for file, truth in zip(self.files, self.truth, strict=True):
            with open(file.path, "rb") as host:
                assert host.read() == truth

    @invariant()
    def the_guest_sees_the_files(self) -> None:
        for moffset, place in enumerate(self.places):
            if place:
                which, page, _ = place
                wanted = bytes(self.truth[which][page * self.unit : (page + 1) * self.unit])
                assert self.guest.read(moffset)[: len(wanted)] == wanted


class Full(Dax):
    """On a disk that is full at times: no store is lost while the session lasts, and the guest sees its own all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.room: int | None = None
        """How many more writes the disk takes; None for all."""
        patch = self._opened.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(CopiedFile, "write", self._writing(CopiedFile.write))

    def _writing(self, real: Callable[[CopiedFile, bytes, int], None]) -> Callable[[CopiedFile, bytes, int], None]:
        def write(file: CopiedFile, data: bytes, offset: int) -> None:
            if self.room is not None and data:
                if not self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.room -= 1
            real(file, data, offset)

        return write

    @rule(room=st.none() | st.integers(0, 2))
    def fill(self, room: int | None) -> None:
        self.room = room

    def remove(self, moffset: int, count: int) -> None:
        with suppress(OSError):
            super().remove(moffset, count)
        self.places[moffset : moffset + count] = [None] * min(count, PAGES - moffset)

    def read(self, which: int) -> None:
        """Who is told of no failure has all in the file."""
        with suppress(OSError):
            super().read(which)

    def end(self) -> None:
        """What can't be written now is lost."""
        self.room = None
        super().end()


class Direct(Dax):
    """The same of files that are mapped themselves, in granules of more than a page."""

    unit = 2 * PAGE

    @staticmethod
    def opened() -> AbstractContextManager[Guest]:
        return direct_window_of(PAGES, alignment=13)


TestDax = Dax.TestCase
TestDax.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestFull = Full.TestCase
TestFull.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDirect = Direct.TestCase
TestDirect.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
