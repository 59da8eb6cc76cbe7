"""Compiled rings over memory whose file may shrink: no copies for who wants no views, and no signal where memory is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from vhostuser import DescriptorChain, _native
from vhostuser.devices.vectors import read_into, write_from
from vhostuser.errors import MemoryFault, QueueBroken
from vhostuser.memory.fragile import Copies, pour_back
from vhostuser.memory.guest import GuestMemory
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.payloads import MemoryRegion, VringAddr
from vhostuser.testing import memory_file
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed_driver import PackedDriverQueue
from vhostuser.virtqueue import DeviceQueue, Place

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here")

PAGE = 4096
SIZE = 8
USED = 1024
GIVEN, TAKEN = 2 * PAGE, 4 * PAGE
"""Where a request's readable bytes lie, and its writable ones: two pages each."""
MOST = 4 * PAGE


@dataclass
class Shared:
    """A file that may shrink, with a ring in its first page."""

    file: int
    driver: DriverQueue | PackedDriverQueue
    queue: DeviceQueue

    def taken(self) -> DescriptorChain:
        """A request with two pages each way."""
        self.driver.add([(GIVEN, 2 * PAGE)], [(TAKEN, 2 * PAGE)])
        chain = self.queue.pop()
        assert chain is not None
        return chain

    def cut(self, size: int) -> None:
        os.ftruncate(self.file, size)


@pytest.fixture(params=[SPLIT, PACKED], ids=["split", "packed"])
def form(request: pytest.FixtureRequest) -> Format:
    assert isinstance(request.param, Format)
    return request.param


def share(file: int, form: Format, copies: int, features: int = 0) -> Shared:
    """A ring in the file's first page, and the two halves of it; so many bytes may be copied."""
    memory = GuestMemory.of([MemoryRegion(0, 8 * PAGE, 0, 0)], [file], None, Copies(copies))
    mapped, (descriptors, available, used) = map_file(file, PAGE, 0), form.sizes(SIZE)
    place = Place(0, SIZE, VringAddr(0, 0, 0, USED, 512, 0), memory, features | form.is_packed << Feature.RING_PACKED)
    parts = mapped[:descriptors], mapped[512 : 512 + available], mapped[USED : USED + used]
    return Shared(file, form.driver(SIZE, *parts), place.begin(None))


@pytest.fixture
def shared(form: Format) -> Iterator[Shared]:
    with memory_file(8, seal=False) as fd:
        os.pwrite(fd.fileno(), bytes(PAGE), 0)
        yield share(fd.fileno(), form, MOST)


def test_bytes_and_files_go_straight_to_memory_and_nothing_is_copied(form: Format) -> None:
    with memory_file(8, seal=False) as fd, memory_file(1, fill=b"file") as disk:
        os.pwrite(fd.fileno(), bytes(PAGE), 0)
        shared = share(fd.fileno(), form, copies=0)
        chain = shared.taken()
        assert (chain.read(1), chain.readable_size, chain.writable_size) == (b"\2", 2 * PAGE, 2 * PAGE)
        assert chain.write(b"word") == 4
        assert read_into(chain, disk.fileno(), 0, start=PAGE - 2, size=4) == 4
        assert write_from(chain, disk.fileno(), 8, start=PAGE - 2, size=4) == 4
        assert os.pread(fd.fileno(), 4, TAKEN) == b"word", "not only once the request is given back"
        pour_back(chain)
        shared.queue.push(chain)
        assert shared.queue.publish()
        assert os.pread(fd.fileno(), PAGE + 2, TAKEN) == b"word".ljust(PAGE - 2, b"\4") + b"file"
        assert os.pread(disk.fileno(), 4, 8) == b"\2\2\3\3"
        assert shared.driver.collect() == (chain.head, 4)


def test_a_view_is_a_copy_that_counts_from_then_on_and_is_written_back(shared: Shared) -> None:
    chain = shared.taken()
    chain.write(b"a")
    with memoryview(chain.writable[0]) as view:
        assert bytes(view[:2]) == b"a\4"
        view[2:3] = b"c"
    chain.write(b"b")
    with memory_file(1, fill=b"d") as disk:
        assert read_into(chain, disk.fileno(), 0, start=3, size=1) == 1
    assert os.pread(shared.file, 4, TAKEN) == b"a\4\4\4"
    pour_back(chain)
    assert os.pread(shared.file, 5, TAKEN) == b"abcd\4"


def test_what_a_device_reads_of_a_copy_nobody_changes(shared: Shared) -> None:
    chain = shared.taken()
    assert bytes(chain.readable[0][:1]) == b"\2"
    os.pwrite(shared.file, b"new", GIVEN)
    assert chain.read(3) == b"\2\2\2"
    with memory_file(1, fill=b"") as disk:
        assert write_from(chain, disk.fileno(), 0, start=0, size=3) == 3
        assert os.pread(disk.fileno(), 3, 0) == b"\2\2\2"


def test_q17_views_of_too_much_are_a_fault_and_the_request_is_lost(form: Format) -> None:
    with memory_file(8, seal=False) as fd:
        os.pwrite(fd.fileno(), bytes(PAGE), 0)
        chain = share(fd.fileno(), form, copies=PAGE).taken()
        with pytest.raises(MemoryFault, match="more to copy"):
            assert chain.writable
        with pytest.raises(MemoryFault, match="gone"):
            pour_back(chain)


def load(chain: DescriptorChain) -> object:
    with memory_file(2) as disk:
        return read_into(chain, disk.fileno(), 0, start=0, size=2 * PAGE)


def save(chain: DescriptorChain) -> object:
    with memory_file(2) as disk:
        return write_from(chain, disk.fileno(), 0, start=0, size=2 * PAGE)


TOUCHES: dict[str, tuple[Callable[[DescriptorChain], object], int, type[Exception]]] = {
    "read": (lambda chain: chain.read(), GIVEN, MemoryFault),
    "write": (lambda chain: chain.write(bytes(2 * PAGE)), TAKEN, MemoryFault),
    "readable": (lambda chain: chain.readable, GIVEN, MemoryFault),
    "writable": (lambda chain: chain.writable, TAKEN, MemoryFault),
    "load": (load, TAKEN, OSError),
    "save": (save, GIVEN, OSError),
}


@pytest.mark.parametrize("left", [0, PAGE], ids=["nothing", "the first page"])
@pytest.mark.parametrize("name", TOUCHES)
def test_m06_who_touches_memory_that_is_gone_hears_of_it_and_the_request_is_lost(
    shared: Shared, name: str, left: int
) -> None:
    touch, start, error = TOUCHES[name]
    chain = shared.taken()
    shared.cut(start + left)
    with pytest.raises(error):
        touch(chain)
    with pytest.raises(MemoryFault, match="gone"):
        pour_back(chain)


@pytest.mark.parametrize("moment", ["pop", "push", "publish", "ask", "rest"])
def test_m06_a_ring_that_is_gone_breaks_the_queue_at_any_moment(shared: Shared, moment: str) -> None:
    chain, queue = shared.taken(), shared.queue
    assert isinstance(queue, _native.walk.DeviceRing)
    if moment == "publish":
        queue.push(chain)
    steps = {
        "pop": queue.pop,
        "push": lambda: queue.push(chain),
        "publish": queue.publish,
        "ask": queue.enable_kicks,
        "rest": queue.disable_kicks,
    }
    shared.cut(0)
    for _ in range(2):
        with pytest.raises(QueueBroken, match="guest memory is gone"):
            steps[moment]()


def test_what_is_wrong_in_such_a_ring_is_said_as_ever(shared: Shared) -> None:
    shared.driver.add([(64 * PAGE, 1)], [])
    with pytest.raises(QueueBroken, match="outside guest memory"):
        shared.queue.pop()


def test_with_event_idx_an_empty_queue_asks_for_a_kick() -> None:
    with memory_file(8, fill=b"", seal=False) as fd:
        shared = share(fd.fileno(), SPLIT, 0, 1 << Feature.RING_EVENT_IDX)
        shared.queue.push(shared.taken())
        assert shared.queue.publish()
        assert shared.queue.pop() is None
        assert os.pread(fd.fileno(), 2, USED + SPLIT.sizes(SIZE)[2]) == b"\1\0"


def test_memory_that_may_shrink_needs_a_queue_that_survives_it() -> None:
    with memory_file(8, seal=False) as fd:
        memory = GuestMemory.of([MemoryRegion(0, 8 * PAGE, 0, 0)], [fd.fileno()])
    table, parts = _native.walk.RegionTable(memory.shown), [memoryview(bytearray(size)) for size in SPLIT.sizes(SIZE)]
    with pytest.raises(ValueError, match="may shrink"):
        _native.ring.SplitRing(SIZE, parts[0], parts[1], parts[2], memory, table)
