"""GET_INFLIGHT_FD, SET_INFLIGHT_FD and GET_VRING_BASE_INFLIGHT over a real connection ("Inflight I/O tracking")."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from vhostuser import KEEP, DescriptorChain, Device
from vhostuser.device import Keep
from vhostuser.memory.inflight import SPLIT, area_size
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64, Inflight, MemoryRegion, MemoryTable, VringState
from vhostuser.testing import DEADLINE, ServedRawFrontend, joined, raw_frontend, sparse_file, usage, wait_until
from vhostuser.testing.raw_frontend import FEATURES, PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.formats import PACKED
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed_driver import PackedDriverQueue
from vhostuser.virtio.split import ring_sizes

Q, F = FrontendRequest, ProtocolFeature
TRACKED = PROTOCOL_FEATURES | mask((F.INFLIGHT_SHMFD,))
RECORDED = TRACKED | mask((F.GET_VRING_BASE_INFLIGHT,))
SIZE = 16


class Keeper(Device):
    """Keeps what it is told to keep, and answers the rest."""

    queue_sizes = (SIZE, SIZE)
    drain_timeout = 0.05

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        self.seen.append(request := chain.read())
        if request == b"keep":
            return KEEP
        chain.write(b"ok")
        return None


class Rig:
    """A raw front-end with memory, an area, and the driver of queue 0, which outlives the connection."""

    def __init__(self) -> None:
        self.file = sparse_file(1 << 20, seal=True)
        self.memory = memoryview(mmap.mmap(self.file.fileno(), 1 << 20))
        sizes = ring_sizes(SIZE)
        starts = (0, sizes[0], sizes[0] + -(-sizes[1] // 4) * 4)
        self.parts = [self.memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        self.driver: DriverQueue | None = DriverQueue(SIZE, *self.parts)
        self.offered = 0
        self.area: OwnedFd | None = None

    def empty(self) -> None:
        """The ring as it is after a reset."""
        for part in self.parts:
            part[:] = bytes(part.nbytes)
        self.driver = DriverQueue(SIZE, *self.parts)

    def connect(self, raw: ServedRawFrontend, *, base: int = 0, protocol: int = TRACKED) -> None:
        """Begin, as after a death: with the area of before, if there is one."""
        raw.negotiate(protocol=protocol)
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 1 << 20, 0, 0)]), fds=[self.file])
        if self.area is None:
            self.area = area_of(raw)
        raw.accepted(Q.SET_INFLIGHT_FD, Inflight(os.fstat(self.area.fileno()).st_size, 0, 2, SIZE), fds=[self.area])
        raw.set_up_queue(size=SIZE, base=base)

    def ask(self, raw: ServedRawFrontend, *requests: bytes) -> None:
        for request in requests:
            start = 0x10000 + 64 * self.offered
            self.offered += 1
            self.memory[start : start + len(request)] = request
            assert self.driver
            self.driver.add([(start, len(request))], [(start + 32, 2)])
        assert raw.kick
        os.eventfd_write(raw.kick.fileno(), 1)

    def answers(self) -> int:
        count = 0
        while self.driver and self.driver.collect():
            count += 1
        return count

    def close(self) -> None:
        self.driver, self.memory, self.parts = None, memoryview(b""), []
        self.file.close()
        if self.area:
            self.area.close()


def area_of(raw: ServedRawFrontend, queues: int = 2, size: int = SIZE) -> OwnedFd:
    """What GET_INFLIGHT_FD gives."""
    reply = raw.reply(Q.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
    body = Inflight.unpack(reply.payload)
    assert (body.mmap_offset, body.num_queues, body.queue_size) == (0, queues, size)
    assert len(reply.fds) == 1
    assert os.fstat(reply.fds[0].fileno()).st_size == body.mmap_size
    return reply.fds[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_the_area_is_zeroes_that_nobody_can_shrink() -> None:
    with raw_frontend(Keeper()) as raw:
        raw.negotiate(protocol=TRACKED)
        with area_of(raw) as fd:
            assert fcntl.fcntl(fd.fileno(), 1034) & 7 == 7
            assert not any(os.pread(fd.fileno(), 1 << 20, 0))


@pytest.mark.parametrize(
    "body", [Inflight(0, 0, 0, 16), Inflight(0, 0, 3, 16), Inflight(0, 0, 1, 0), Inflight(0, 0, 1, 32769)]
)
def test_an_area_for_queues_that_can_not_be_is_none(body: Inflight) -> None:
    with raw_frontend(Keeper()) as raw:
        raw.negotiate(protocol=TRACKED)
        reply = raw.reply(Q.GET_INFLIGHT_FD, body)
        assert Inflight.unpack(reply.payload) == Inflight(0, 0, 0, 0)
        assert not reply.fds
        raw.alive()


@pytest.mark.parametrize("body", [Inflight(0x100, 0, 2, SIZE), Inflight(0x1001, 0, 2, SIZE), Inflight(0x400, 3, 1, SIZE)])
def test_an_area_that_is_too_small_or_lies_wrong_is_refused(body: Inflight) -> None:
    with raw_frontend(Keeper()) as raw, sparse_file(0x1000) as file:
        raw.negotiate(protocol=TRACKED)
        before = usage()
        for _ in range(20):
            raw.refused(Q.SET_INFLIGHT_FD, body, fds=[file])
        wait_until(lambda: usage().fds <= before.fds, "all that came is closed")


def test_w29_without_the_feature_there_is_no_area() -> None:
    with raw_frontend(Keeper()) as raw, sparse_file(0x1000) as file:
        raw.negotiate()
        raw.refused(Q.SET_INFLIGHT_FD, Inflight(0x1000, 0, 1, SIZE), fds=[file])


def test_w35_a_thousand_areas_leave_nothing_behind() -> None:
    with raw_frontend(Keeper()) as raw:
        raw.negotiate(protocol=TRACKED)
        with area_of(raw) as fd:
            body = Inflight(os.fstat(fd.fileno()).st_size, 0, 2, SIZE)
            raw.accepted(Q.SET_INFLIGHT_FD, body, fds=[fd])
            before = usage()
            for _ in range(1000):
                raw.accepted(Q.SET_INFLIGHT_FD, body, fds=[fd])
            wait_until(lambda: usage().fds <= before.fds, "all that came is closed")
            assert usage().mappings <= before.mappings + 1


def test_p01_what_a_dead_back_end_had_taken_is_done_by_the_next_one(rig: Rig) -> None:
    with raw_frontend(first := Keeper()) as raw:
        rig.connect(raw)
        rig.ask(raw, b"one", b"keep", b"two")
        wait_until(lambda: len(first.seen) == 3, "three are taken")
        wait_until(lambda: rig.answers() == 2, "two come back")
    with raw_frontend(second := Tolerant()) as raw:
        rig.connect(raw, base=2)
        wait_until(lambda: rig.answers() == 1, "the third comes back, without a kick")
        rig.ask(raw, b"more")
        wait_until(lambda: rig.answers() == 1, "and so does what follows")
    assert second.seen == [b"keep", b"more"]


class Tolerant(Keeper):
    """Keeps nothing."""

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.seen.append(chain.read())
        chain.write(b"ok")


def test_with_get_vring_base_inflight_a_stop_waits_for_nothing_and_loses_nothing(rig: Rig) -> None:
    with raw_frontend(device := Keeper()) as raw:
        device.drain_timeout = 600.0
        rig.connect(raw, protocol=RECORDED)
        rig.ask(raw, b"keep", b"one")
        wait_until(lambda: rig.answers() == 1, "one comes back")
        assert VringState.unpack(raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 2
        raw.set_up_queue(size=SIZE, base=2)
        wait_until(lambda: len(device.seen) == 3, "what was kept is taken again")
        assert device.seen == [b"keep", b"one", b"keep"]


def test_a_reset_forgets_what_was_in_progress(rig: Rig) -> None:
    with raw_frontend(device := Keeper()) as raw:
        rig.connect(raw)
        rig.ask(raw, b"keep")
        wait_until(lambda: len(device.seen) == 1, "it is taken")
        raw.accepted(Q.RESET_DEVICE)
        rig.empty()
        raw.set_up_queue(size=SIZE)
        rig.ask(raw, b"one")
        wait_until(lambda: rig.answers() == 1, "the new request comes back")
        assert device.seen == [b"keep", b"one"]


def test_a_new_call_fd_is_set_once(rig: Rig) -> None:
    """A back-end that died may have given back requests and not said so."""
    with raw_frontend(Keeper()) as raw:
        rig.connect(raw)
        call = raw.eventfd()
        raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
        assert os.eventfd_read(call.fileno()) == 1


# Packed rings


class Holder(Device):
    """Keeps what it is told to keep until it is told to answer it."""

    queue_sizes = (4,)

    def __init__(self) -> None:
        self.kept: list[DescriptorChain] = []

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        if chain.read() == b"keep":
            self.kept.append(chain)
            return KEEP
        chain.write(b"done")
        return None

    def answer(self, chain: DescriptorChain) -> None:
        chain.write(b"done")
        self.complete(0, chain)


@pytest.mark.parametrize("before", range(3, 6))
def test_a_packed_ring_full_of_kept_requests_goes_on_when_memory_changes(before: int) -> None:
    """Whatever slot it is full from: after 4 requests its base is 0x8000, which is DPDK's short form, too."""
    device = Holder()
    with joined(device, packed=True) as (frontend, _):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=4, indirect=True)
        for _ in range(before):
            assert queue.exchange(b"now", 4, timeout=DEADLINE) == b"done"
        tickets = [queue.submit([b"keep"], [4]) for _ in range(4)]
        queue.notify()
        wait_until(lambda: len(device.kept) == 4, "all are kept")
        frontend.add_memory(4096)
        while device.kept:
            device.answer(device.kept.pop(0))
        assert [queue.finish(each, timeout=DEADLINE).data for each in tickets] == [b"done"] * 4


def test_an_area_without_room_for_a_packed_ring_is_refused_as_that_begins() -> None:
    with raw_frontend(Keeper()) as raw, sparse_file(4096) as file:
        raw.negotiate(features=FEATURES | 1 << Feature.RING_PACKED, protocol=TRACKED)
        raw.share_memory()
        raw.accepted(Q.SET_INFLIGHT_FD, Inflight(area_size(SPLIT, 2, SIZE), 0, 2, SIZE), fds=[file])
        raw.set_up_queue(0, size=SIZE, ring=PACKED)
        with pytest.raises(AssertionError, match=r"SET_VRING_KICK.*was refused"):
            raw.set_up_queue(1, size=SIZE, at=0x4000, ring=PACKED)
        raw.alive()


class Waiting(Device):
    """Answers once it may."""

    queue_sizes = (SIZE,)

    def __init__(self) -> None:
        self.took, self.goes_on = threading.Event(), threading.Event()

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.took.set()
        self.goes_on.wait(DEADLINE)
        chain.write(b"ok")


@pytest.mark.parametrize("resets", [False, True])
def test_a_packed_queue_whose_area_is_lost_meanwhile_breaks_and_may_be_stopped(resets: bool) -> None:
    device = Waiting()
    with raw_frontend(device) as raw, sparse_file(1 << 20, seal=True) as file, sparse_file(4096) as area:
        raw.negotiate(features=FEATURES | 1 << Feature.RING_PACKED, protocol=TRACKED)
        memory = memoryview(mmap.mmap(file.fileno(), 1 << 20))
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 1 << 20, 0, 0)]), fds=[file])
        raw.accepted(Q.SET_INFLIGHT_FD, Inflight(4096, 0, 1, SIZE), fds=[area])
        raw.set_up_queue(size=SIZE, ring=PACKED)
        table = PACKED.sizes(SIZE)[0]
        driver = PackedDriverQueue(SIZE, memory[:table], memory[table : table + 4], memory[table + 4 : table + 8])
        driver.add([(0x10000, 4)], [(0x10100, 4)])
        assert raw.kick
        os.eventfd_write(raw.kick.fileno(), 1)
        assert device.took.wait(DEADLINE)
        os.ftruncate(area.fileno(), 0)
        device.goes_on.set()
        wait_until(lambda: raw.served.backend.counters.broken == 1, "the queue is broken")
        if resets:
            raw.accepted(Q.RESET_DEVICE)
        else:
            raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        raw.alive()
