"""The dirty log: every byte that a device writes lies in a page that is marked, and no log is too small."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vhostuser import DescriptorChain
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask
from vhostuser.protocol.payloads import U64, Log, MemoryRegion, MemoryTable, VringAddr
from vhostuser.testing import MockDriver, ServedRawFrontend, memory_file, raw_frontend, sparse_file, usage
from vhostuser.testing.raw_frontend import FEATURES, PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.formats import PACKED
from vhostuser.virtio.numbers import Feature

from .devices import Scripted

Q, F = FrontendRequest, ProtocolFeature
PAGE = 4096
PAGES = 64
SECOND = 512 * PAGE
"""The guest address of the second region; the first one is at 0."""
USED = 4096 * PAGE
"""Where the used ring lies, as far as the log is concerned: outside of memory, which is allowed."""
SIZE = 1024
"""Bytes of the log: pages up to 8,192."""
LOGGED = FEATURES | 1 << VhostFeature.LOG_ALL
SLOTS = PROTOCOL_FEATURES | mask((F.LOG_SHMFD,))


class Scattering(Scripted):
    """Writes at the end of what it may write, too, and says nothing of it, as virtio-blk does with its status."""

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read())
        for view in chain.writable:
            view[-1:] = b"!"


class Logged:
    """A back-end whose ring runs, with two regions of memory and a log whose first byte is not the file's first."""

    def __init__(self, raw: ServedRawFrontend, files: tuple[OwnedFd, OwnedFd], log: OwnedFd) -> None:
        self.raw, self.files, self.log = raw, files, log
        raw.negotiate(features=FEATURES, protocol=SLOTS)
        rows = [MemoryRegion(0, PAGES * PAGE, 0, 0), MemoryRegion(SECOND, PAGES * PAGE, SECOND, 0)]
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable(rows), fds=list(files))
        self.ring = MockDriver(raw, map_file(files[0].fileno(), PAGE, 0))

    def start(self, *, used: bool = True) -> None:
        """As QEMU does it when a migration begins: the log, LOG_ALL, and each ring's address once more."""
        body = Log(SIZE, PAGE + 4)
        frame = self.raw.reply(Q.SET_LOG_BASE, body, fds=[self.log])
        assert Log.unpack(frame.payload) == body
        self.switch(on=True)
        self.raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, int(used), 0, 292, 256, USED))

    def switch(self, *, on: bool) -> None:
        self.raw.accepted(Q.SET_FEATURES, U64((LOGGED if on else FEATURES) & self.raw.value(Q.GET_FEATURES)))

    def take(self) -> set[int]:
        """The pages that are marked; none is from now on."""
        self.raw.alive()
        data = os.pread(self.log.fileno(), SIZE, PAGE + 4)
        os.pwrite(self.log.fileno(), bytes(SIZE), PAGE + 4)
        return {8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}

    def image(self) -> dict[int, bytes]:
        """Guest memory by page."""
        starts = zip((0, SECOND // PAGE), self.files, strict=True)
        return {first + at: os.pread(file.fileno(), PAGE, at * PAGE) for first, file in starts for at in range(PAGES)}


@pytest.fixture(params=[True, False], ids=["sealed", "may shrink"])
def logged(request: pytest.FixtureRequest) -> Iterator[Logged]:
    with (
        memory_file(PAGES, fill=b"", seal=request.param) as first,
        memory_file(PAGES, fill=b"", seal=True) as second,
        memory_file(4, fill=b"", seal=request.param) as log,
        raw_frontend(Scattering(regions={})) as raw,
    ):
        made = Logged(raw, (first, second), log)
        yield made
        del made.ring  # and its view of memory


@pytest.mark.parametrize(
    "writable",
    [
        [(8 * PAGE, 10)],
        [(8 * PAGE - 1, 2)],
        [(10 * PAGE, 3 * PAGE), (SECOND + 63 * PAGE, PAGE)],
        [(SECOND + PAGE - 1, 1), (9 * PAGE + 7, 3 * PAGE)],
    ],
)
def test_every_byte_that_a_device_writes_is_covered(logged: Logged, writable: list[tuple[int, int]]) -> None:
    logged.start()
    os.pwrite(logged.files[0].fileno(), b"x" * 2 * PAGE, PAGE)
    logged.take()
    before = logged.image()
    logged.ring.exchange([(PAGE, 2 * PAGE)], writable)
    after, dirty = logged.image(), logged.take()
    written = {page for page in before if before[page] != after[page]} - {0}
    assert written, "the device wrote something"
    assert written <= dirty
    touched = {page for start, size in writable for page in range(start // PAGE, (start + size - 1) // PAGE + 1)}
    assert dirty == touched | {USED // PAGE}, "and nothing is marked that it was not given"


def test_the_used_ring_is_logged_where_its_flag_says_so(logged: Logged) -> None:
    logged.start(used=False)
    logged.ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)])
    assert logged.take() == {2}
    logged.start(used=True)
    logged.ring.exchange([(PAGE, 4)], [])
    assert logged.take() == {USED // PAGE}


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "may shrink"])
def test_the_descriptors_of_a_packed_ring_are_logged_where_they_lie(seal: bool) -> None:
    """The device writes into them, whatever the address for logging says."""
    with (
        memory_file(PAGES, fill=b"", seal=seal) as file,
        sparse_file(2 * PAGE, seal=True) as log,
        raw_frontend(Scattering(regions={})) as raw,
    ):
        raw.negotiate(features=FEATURES | 1 << Feature.RING_PACKED, protocol=SLOTS)
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, PAGES * PAGE, 0, 0)]), fds=[file])
        ring = MockDriver(raw, map_file(file.fileno(), 6 * PAGE, 0)[5 * PAGE :], at=5 * PAGE, form=PACKED)
        raw.reply(Q.SET_LOG_BASE, Log(SIZE, 0), fds=[log])
        raw.accepted(Q.SET_FEATURES, U64(LOGGED | 1 << Feature.RING_PACKED))
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 1, 5 * PAGE, 5 * PAGE + 260, 5 * PAGE + 256, 9 * PAGE))
        ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)])
        raw.alive()
        assert os.pread(log.fileno(), 2, 0) == (1 << 2 | 1 << 5 | 1 << 9).to_bytes(2, "little")
        del ring


def test_logging_is_switched_while_the_ring_runs(logged: Logged) -> None:
    for on in (False, True, False, True):
        logged.start()
        logged.switch(on=on)
        logged.ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)])
        assert logged.take() == ({2, USED // PAGE} if on else set())


def test_features_may_ask_for_a_log_that_is_not_there_yet(logged: Logged) -> None:
    """QEMU starts a device during a migration in this order."""
    logged.switch(on=True)
    logged.ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)])
    logged.start()
    logged.ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)])
    assert 2 in logged.take()


def test_an_eventfd_for_changes_of_the_log_is_taken_and_closed(logged: Logged) -> None:
    with OwnedFd(os.eventfd(0)) as event:
        logged.raw.alive()
        before = usage().fds
        logged.raw.accepted(Q.SET_LOG_FD, fds=[event])
        logged.raw.alive()
        assert usage().fds == before


def test_a_log_that_is_too_small_for_a_used_ring_breaks_the_queue(logged: Logged) -> None:
    logged.start()
    logged.raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 1, 0, 292, 256, 8 * SIZE * PAGE - 16))
    logged.ring.offer([(PAGE, 4)], [(2 * PAGE, 4)])
    logged.ring.broken()


def test_a_log_that_shrinks_breaks_the_queue() -> None:
    with (
        memory_file(PAGES, fill=b"") as first,
        memory_file(PAGES, fill=b"") as second,
        memory_file(4, fill=b"", seal=False) as log,
        raw_frontend(Scattering(regions={})) as raw,
    ):
        logged = Logged(raw, (first, second), log)
        logged.start()
        os.ftruncate(log.fileno(), 0)
        logged.ring.offer([(PAGE, 4)], [(2 * PAGE, 4)])
        logged.ring.broken()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (Log(71, 0), "mmap_size 0x47 is less than guest memory up to 0x240000 needs, 0x48"),
        (Log(0, 0), "mmap_size 0x0 is less than guest memory"),
        (Log(PAGE, PAGE + 4), "passes the file's end 0x2000"),
        (Log(1 << 63, 1 << 63), "passes the file's end 0x2000"),
    ],
)
def test_a_log_that_can_not_be_is_refused_by_name(body: Log, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """SET_LOG_BASE is answered by a reply that has no way to say no: the connection ends."""
    with memory_file(PAGES) as file, sparse_file(2 * PAGE) as log, raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=SLOTS)
        rows = [MemoryRegion(0, PAGES * PAGE, 0, 0), MemoryRegion(SECOND, PAGES * PAGE, SECOND, 0)]
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable(rows), fds=[file, file])
        raw.request(Q.SET_LOG_BASE, body, fds=[log])
        raw.closes()
    assert why in caplog.text


def test_a_log_without_an_fd_is_refused() -> None:
    """That is what SET_LOG_BASE means where LOG_SHMFD was not negotiated: an address of the front-end."""
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=PROTOCOL_FEATURES)
        raw.refused(Q.SET_LOG_BASE, U64(PAGE))
        raw.alive()
