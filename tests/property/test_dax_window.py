"""A window, of copies or of files themselves: whatever is done, the guest sees the file, and the file gets the stores."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import count
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
    """Two files, each shown in any part of the window, and a byte of a file in as many places as come.

    What was stored through one place others show once it is settled, at the latest. Till then it may be stored again
    through the same place only: which of two stores is the later one a copy does not know.
    """

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
        self.open: list[dict[int, int]] = [{} for _ in self.files]
        """Bytes of each file that may have been stored and not settled yet, and through which place."""
        self.mtime = count(1)

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
        self.guest.show(self.files[which], foffset, moffset, count, writable=writable)
        for at in range(count):
            place = which, foffset + at, writable
            if (self.places[moffset + at] or ())[:2] != place[:2]:
                self.left(moffset + at)
            self.places[moffset + at] = place
        own = range(moffset, moffset + count)
        self.settled(which, foffset * self.unit, (foffset + count) * self.unit, own)
        for at in own:
            self.check(at, ())

    @rule(which=PLACES, moffset=PLACES, writable=st.booleans())
    def setup_again(self, which: int, moffset: int, writable: bool) -> None:
        """Show what one place shows in another one, too."""
        shown = [place for place in self.places if place]
        if shown:
            file, page, _ = shown[which % len(shown)]
            self.setup(file, page, moffset, 1, writable)

    def left(self, moffset: int) -> None:
        """A place is another's now, and what was stored through it is settled, or seen in all others."""
        for rows in self.open:
            for at in [at for at, through in rows.items() if through == moffset]:
                del rows[at]

    def settled(self, which: int, start: int, end: int, but: Collection[int] = ()) -> None:
        """These bytes of a file are the same wherever they are shown, but for what was stored through some places."""
        rows = self.open[which]
        for at in [at for at, through in rows.items() if start <= at < end and through not in but]:
            del rows[at]

    @rule(moffset=PLACES, count=COUNTS)
    def remove(self, moffset: int, count: int) -> None:
        count = min(count, PAGES - moffset)
        self.guest.remove(moffset, count)
        self.gone(moffset, count)

    def gone(self, moffset: int, count: int) -> None:
        """Nothing is in these places."""
        self.places[moffset : moffset + count] = [None] * count
        for at in range(moffset, moffset + count):
            self.left(at)

    @rule(moffset=PLACES, at=SIZES, data=BYTES)
    def store(self, moffset: int, at: int, data: bytes) -> None:
        """The guest stores by mmap; below the file's end, since what is behind it is nobody's."""
        stored = [(at, place) for at, place in enumerate(self.places) if place and place[2]]
        if not stored:
            return
        moffset, (which, page, _) = stored[moffset % len(stored)]
        at %= self.unit
        start = page * self.unit + at
        data = data[: max(0, min(self.unit - at, len(self.truth[which]) - start))]
        places = range(start, start + len(data))
        if data and all(self.open[which].get(each, moffset) == moffset for each in places):
            self.guest.store(moffset, data, at)
            self.truth[which][start : start + len(data)] = data
            self.open[which].update(dict.fromkeys(places, moffset))

    @rule(which=FILES, offset=SIZES, data=BYTES)
    def write(self, which: int, offset: int, data: bytes) -> None:
        """A WRITE of the guest."""
        self.write_scaled(which, self.scaled(offset), data)

    def write_scaled(self, which: int, offset: int, data: bytes) -> None:
        """The same, at an offset in bytes."""

        def pwrite(fd: int) -> None:
            os.pwrite(fd, data, offset)

        if not data:
            return
        self.change(which, offset, offset + len(data), pwrite)
        truth = self.truth[which]
        truth.extend(bytes(max(0, offset - len(truth))))
        truth[offset : offset + len(data)] = data

    def change(self, which: int, start: int, end: int, act: Callable[[int], None]) -> None:
        """A request of the guest's that changes these bytes of a file."""
        key, window = self.files[which].key, self.guest.window
        self.guest.do(lambda: window.before(key, start, end))
        with self.files[which].open(os.O_RDWR) as fd:
            act(fd.fileno())
        self.guest.do(lambda: window.after(key, start, end))
        self.settled(which, start, end)

    @rule(which=FILES, offset=SIZES, size=SIZES)
    def punch(self, which: int, offset: int, size: int) -> None:
        """A FALLOCATE that makes a hole; it makes no file longer."""
        start, end = self.scaled(offset), self.scaled(offset + size)
        if not size:
            return

        truth = self.truth[which]

        def zero(fd: int) -> None:
            os.pwrite(fd, bytes(len(truth[start:end])), start)

        self.change(which, start, end, zero)
        truth[start:end] = bytes(len(truth[start:end]))

    @rule(which=FILES, offset=SIZES, size=SIZES)
    def allocate(self, which: int, offset: int, size: int) -> None:
        """A FALLOCATE that changes no byte, but may make the file longer: `after` is told of the end only."""
        start, end, key, window = self.scaled(offset), self.scaled(offset + size), self.files[which].key, self.guest.window
        if not size:
            return
        self.guest.do(lambda: window.before(key, start, end))
        os.truncate(self.files[which].path, max(end, len(self.truth[which])))
        self.guest.do(lambda: window.after(key, end, end))
        self.truth[which].extend(bytes(max(0, end - len(self.truth[which]))))

    @rule(source=FILES, start=SIZES, size=SIZES, offset=SIZES)
    def copy(self, source: int, start: int, size: int, offset: int) -> None:
        """COPY_FILE_RANGE from one file to the other, which is refused if the source can't be settled."""
        start, end, offset = self.scaled(start), self.scaled(start + size), self.scaled(offset)
        key, window, truth = self.files[source].key, self.guest.window, self.truth[source]
        if start < end and not self.asked(lambda: window.before(key, start, end)):
            self.settled(source, start, end)
            with open(self.files[source].path, "rb") as host:
                data = os.pread(host.fileno(), end - start, start)
            assert data == truth[start:end]
            self.write_scaled(1 - source, offset, data)

    @rule(which=FILES, offset=SIZES, size=SIZES)
    def pread(self, which: int, offset: int, size: int) -> None:
        """A READ of the guest, which is refused if the file lacks what was stored."""
        start, end, key, window = self.scaled(offset), self.scaled(offset + size), self.files[which].key, self.guest.window
        if start < end and not self.asked(lambda: window.before(key, start, end)):
            self.settled(which, start, end)
            with open(self.files[which].path, "rb") as host:
                assert os.pread(host.fileno(), end - start, start) == self.truth[which][start:end]

    def asked(self, act: Callable[[], int]) -> int:
        """What the window answers."""
        answers: list[int] = []
        self.guest.do(lambda: answers.append(act()))
        return answers[0]

    @rule(which=FILES, size=SIZES)
    def truncate(self, which: int, size: int) -> None:
        size, truth = self.scaled(size), self.truth[which]
        self.guest.truncate(self.files[which], size)
        self.settled(which, size, len(truth))
        truth[:] = truth[:size].ljust(size, b"\0")

    @rule(which=FILES, page=PLACES, at=SIZES, data=BYTES)
    def change_on_the_host(self, which: int, page: int, at: int, data: bytes) -> None:
        """Somebody else writes to a page that has no stores, and the guest looks at the file's attributes."""
        file, truth = self.files[which], self.truth[which]
        start = page * self.unit + at % PAGE
        data = data[: max(0, min(PAGE - at % PAGE, len(truth) - start))]
        first = start - start % PAGE
        if not data or any(first <= each < first + PAGE for each in self.open[which]):
            return
        with file.open(os.O_RDWR) as fd:
            os.pwrite(fd.fileno(), data, start)
        os.utime(file.path, (1, next(self.mtime)))
        truth[start : start + len(data)] = data
        found = os.stat(file.path)
        self.guest.do(lambda: self.guest.window.refresh(file.key, found.st_size, found.st_mtime_ns))
        self.settled(which, 0, len(truth))

    @rule(which=FILES)
    def read(self, which: int) -> None:
        """An FSYNC of the guest, and then whoever reads on the host."""
        key, window = self.files[which].key, self.guest.window
        self.guest.do(lambda: window.write_back(key))
        self.settled(which, 0, len(self.truth[which]))
        with open(self.files[which].path, "rb") as host:
            assert host.read() == self.truth[which]

    @rule()
    def end(self) -> None:
        """DESTROY, and another session."""
        self.guest.do(self.guest.window.end)
        self.gone(0, PAGES)
        for file, truth in zip(self.files, self.truth, strict=True):
            with open(file.path, "rb") as host:
                assert host.read() == truth

    @invariant()
    def the_guest_sees_the_files(self) -> None:
        for moffset in range(PAGES):
            self.check(moffset, self.open)

    def check(self, moffset: int, unsettled: Sequence[Mapping[int, int]]) -> None:
        """A place shows its file, but for bytes that were stored through another one."""
        place = self.places[moffset]
        if not place:
            return
        which, page, _ = place
        start = page * self.unit
        wanted = self.truth[which][start : start + self.unit]
        found = bytearray(self.guest.read(moffset)[: len(wanted)])
        for at, through in unsettled[which].items() if unsettled else ():
            if through != moffset and start <= at < start + len(wanted):
                found[at - start] = wanted[at - start]
        assert found == wanted


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

    def settled(self, which: int, start: int, end: int, but: Collection[int] = ()) -> None:
        """Nobody knows, while the disk may be full; but what was cut off is nothing."""
        if self.room is None:
            super().settled(which, start, end, but)

    def remove(self, moffset: int, count: int) -> None:
        with suppress(OSError):
            super().remove(moffset, count)
        self.gone(moffset, min(count, PAGES - moffset))

    def change_on_the_host(self, which: int, page: int, at: int, data: bytes) -> None:
        """What is owed may be of any page."""

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
TestFull.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestDirect = Direct.TestCase
TestDirect.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_a_file_shows_in_its_own_pages_what_was_stored_into_a_copy_of_them() -> None:
    """It was empty when a place was given to it, which so is a copy, and has grown since."""
    state = Direct()
    state.make(sizes=(0, 0))
    state.setup(which=0, foffset=0, moffset=0, count=5, writable=True)
    state.remove(moffset=0, count=1)
    state.allocate(which=0, offset=0, size=5 * PAGE + 7)
    state.store(moffset=0, at=0, data=b"stored")
    state.setup_again(which=0, moffset=0, writable=False)
    state.the_guest_sees_the_files()
    state.read(0)
    state.teardown()


def test_a_file_that_takes_no_stores_is_not_shown_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Direct()
    state.make(sizes=(0, 0))
    state.setup(which=0, foffset=0, moffset=0, count=5, writable=True)
    state.remove(moffset=0, count=1)
    state.allocate(which=0, offset=0, size=5 * PAGE)
    state.store(moffset=0, at=0, data=b"stored")
    with monkeypatch.context() as full:

        def no_room(*unused: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(CopiedFile, "write", no_room)
        with pytest.raises(OSError, match="lacks what was stored"):
            state.guest.show(state.files[0], 1, 0, 1, writable=False)
    state.the_guest_sees_the_files()
    state.setup_again(which=0, moffset=0, writable=False)
    state.teardown()
