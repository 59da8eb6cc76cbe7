"""A window of copies against the files: whatever is done, the guest sees the file, and the file gets the stores."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.devices.fs.windowed import PAGE, Guest, HostFile, window_of

PAGES = 8
LONGEST = 6 * PAGE
PLACES = st.integers(0, PAGES - 1)
COUNTS = st.integers(1, PAGES)
FILES = st.integers(0, 1)
BYTES = st.binary(min_size=1, max_size=200)


class Dax(RuleBasedStateMachine):
    """Two files, each shown in any part of the window, as Linux does: no byte of a file in two places."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = ExitStack()
        self.guest: Guest = self._opened.enter_context(window_of(PAGES))
        folder = self._opened.enter_context(tempfile.TemporaryDirectory())
        self.files = [HostFile(f"{folder}/{at}", (7, at)) for at in range(2)]
        self.truth = [bytearray() for _ in self.files]
        self.places: list[tuple[int, int, bool] | None] = [None] * PAGES

    def teardown(self) -> None:
        self._opened.close()

    @initialize(sizes=st.tuples(st.integers(0, LONGEST), st.integers(0, LONGEST)))
    def make(self, sizes: tuple[int, int]) -> None:
        for file, truth, size in zip(self.files, self.truth, sizes, strict=True):
            truth[:] = bytes(1 + at % 250 for at in range(size))
            with open(file.path, "wb") as host:
                host.write(truth)

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

    @rule(moffset=PLACES, at=st.integers(0, PAGE - 1), data=BYTES)
    def store(self, moffset: int, at: int, data: bytes) -> None:
        """The guest stores by mmap; below the file's end, since what is behind it is nobody's."""
        place = self.places[moffset]
        if not place or not place[2]:
            return
        which, page, _ = place
        start = page * PAGE + at
        data = data[: max(0, min(PAGE - at, len(self.truth[which]) - start))]
        if data:
            self.guest.store(moffset, data, at)
            self.truth[which][start : start + len(data)] = data

    @rule(which=FILES, offset=st.integers(0, LONGEST), data=BYTES)
    def write(self, which: int, offset: int, data: bytes) -> None:
        """A WRITE of the guest."""
        key, window, truth = self.files[which].key, self.guest.window, self.truth[which]
        self.guest.do(lambda: window.before(key))
        with self.files[which].open(os.O_RDWR) as fd:
            os.pwrite(fd.fileno(), data, offset)
        self.guest.do(lambda: window.after(key, offset, offset + len(data)))
        truth.extend(bytes(max(0, offset - len(truth))))
        truth[offset : offset + len(data)] = data

    @rule(which=FILES, size=st.integers(0, LONGEST))
    def truncate(self, which: int, size: int) -> None:
        key, window, truth = self.files[which].key, self.guest.window, self.truth[which]
        self.guest.do(lambda: window.before(key))
        os.truncate(self.files[which].path, size)
        self.guest.do(lambda: window.after(key, size, size))
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
                wanted = bytes(self.truth[which][page * PAGE : (page + 1) * PAGE])
                assert self.guest.read(moffset)[: len(wanted)] == wanted


TestDax = Dax.TestCase
TestDax.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
