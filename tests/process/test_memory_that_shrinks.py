"""A front-end that takes its memory away while a device works on it: the queue breaks, the process lives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.wire.devices import Scripted
from vhostuser.memory import guest
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable, VringState
from vhostuser.testing import BackendProcess, memory_file, raw_frontend
from vhostuser.testing.mock_driver import SIZE, MockDriver
from vhostuser.testing.raw_frontend import FEATURES, RawFrontend
from vhostuser.testing.usage import usage, wait_until
from vhostuser.testing.wire import DEADLINE
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtio.numbers import Feature

ECHO = "tests.process.devices:Echo"
PAGE = 4096
PAGES = 512
HALF = PAGES // 2 * PAGE
ROUNDS = 8


@pytest.fixture
def process() -> Iterator[BackendProcess]:
    with BackendProcess(ECHO) as process:
        yield process
        code, errors = process.wait()
        assert code == 0, errors
        assert "Traceback" not in errors


@pytest.fixture(params=[SPLIT, PACKED], ids=["split", "packed"])
def form(request: pytest.FixtureRequest) -> Format:
    assert isinstance(request.param, Format)
    return request.param


@pytest.fixture
def raw(process: BackendProcess, form: Format) -> Iterator[RawFrontend]:
    assert process.socket is not None
    with RawFrontend(process.socket) as raw:
        raw.negotiate(features=FEATURES | form.is_packed << Feature.RING_PACKED)
        yield raw


def share(raw: RawFrontend, file: OwnedFd, form: Format) -> MockDriver:
    """Share the file, with a ring in its first page."""
    raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, PAGES * PAGE, 0, 0)]), fds=[file])
    return MockDriver(raw, map_file(file.fileno(), PAGE, 0), form=form)


def load(ring: MockDriver) -> None:
    """As many requests at once as the ring takes but one, half a megabyte each way in all."""
    each = HALF // SIZE
    for number in range(SIZE // 2 - 1):
        ring.driver.add([(PAGE + number * each, each)], [(HALF + number * each, each)])
    ring.kick()


def works(raw: RawFrontend, form: Format, *, seal: bool) -> None:
    """New memory and a new ring carry a request."""
    with memory_file(PAGES, seal=seal) as file:
        ring = share(raw, file, form)
        os.pwrite(file.fileno(), b"ping", PAGE)
        assert ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)]) == 4
        assert os.pread(file.fileno(), 4, 2 * PAGE) == b"ping"
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))


@pytest.mark.parametrize("left", [0, PAGE, HALF], ids=["nothing", "the ring", "the ring and what is read"])
def test_m06_memory_cut_between_kick_and_processing_breaks_the_queue_alone(
    process: BackendProcess, raw: RawFrontend, form: Format, left: int
) -> None:
    works(raw, form, seal=True)
    before = usage(process.pid)
    for _ in range(ROUNDS):
        with memory_file(PAGES, fill=b"", seal=False) as file:
            ring = share(raw, file, form)
            load(ring)
            os.ftruncate(file.fileno(), left)
            if left:  # it may have been too fast: then this one finds no memory
                ring.offer([(PAGE, 4)], [(PAGES * PAGE - 4, 4)])
            ring.kick()
            ring.broken()
            raw.alive()
            raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
            works(raw, form, seal=False)
    works(raw, form, seal=True)
    wait_until(lambda: usage(process.pid) == before, "nothing is left of the broken queues")


def test_m06_memory_that_comes_and_goes_under_load(raw: RawFrontend, form: Format) -> None:
    """Cut and grown again, over and over, while requests are under way: each finds its memory or breaks the queue."""
    for _ in range(ROUNDS):
        with memory_file(PAGES, fill=b"", seal=False) as file:
            ring = share(raw, file, form)
            load(ring)
            for _ in range(200):
                os.ftruncate(file.fileno(), HALF)
                os.ftruncate(file.fileno(), PAGES * PAGE)
            raw.alive()
            raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    works(raw, form, seal=False)


def test_m06_memory_that_is_gone_before_the_ring_is_laid_is_refused(raw: RawFrontend, form: Format) -> None:
    with memory_file(PAGES, seal=False) as file:
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, PAGES * PAGE, 0, 0)]), fds=[file])
        os.ftruncate(file.fileno(), 0)
        with pytest.raises(AssertionError, match="was refused"):
            raw.set_up_queue(ring=form)
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    works(raw, form, seal=False)


@pytest.mark.parametrize("busy", [True, False])
def test_m06_a_table_whose_memory_is_gone_before_a_ring_moves_there_breaks_the_ring(
    monkeypatch: pytest.MonkeyPatch, form: Format, busy: bool
) -> None:
    """The ring moves at once if it rests, else when the request in progress is done."""
    begun, may_end = threading.Event(), threading.Event()

    def work(device: Scripted, request: bytes) -> bytes:
        begun.set()
        may_end.wait(DEADLINE)
        return request

    def vanishing(region: MemoryRegion, fd: int) -> tuple[memoryview, int]:
        mapped = really_map(region, fd)
        if os.fstat(fd).st_ino == os.fstat(new.fileno()).st_ino:
            os.ftruncate(fd, 0)
        return mapped

    really_map = guest._map
    monkeypatch.setattr(guest, "_map", vanishing)
    with raw_frontend(Scripted(work, {})) as raw, memory_file(PAGES) as old, memory_file(PAGES, seal=False) as new:
        raw.negotiate(features=FEATURES | form.is_packed << Feature.RING_PACKED)
        ring = share(raw, old, form)
        if busy:
            ring.offer([(PAGE, 4)], [(2 * PAGE, 4)])
            assert begun.wait(DEADLINE)
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, PAGES * PAGE, 0, 0)]), fds=[new])
        may_end.set()
        ring.broken()
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        works(raw, form, seal=False)
