"""A disk whose rings are stopped, moved and cut off under load: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import BLK, Program, words
from vhostuser import Frontend, _native
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature, VhostFeature
from vhostuser.protocol.payloads import U64, Log, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import DEADLINE, RawFrontend, memory_file, raw_frontend, wait_until
from vhostuser.testing.raw_frontend import FEATURES, MEMORY, PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.loop import drain
from vhostuser.transport.socket import wait
from vhostuser.virtio.block import HEADER, BlockRequest
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.split import ring_sizes

HANDLERS = ["native", "python"] if _native.accelerated else ["python"]
SIZE = 64
SLOTS = 16
CYCLES = 1000
SECTORS = 8192
AT, BUFFERS = 0, 0x10000
FLUSH = 1 << 9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(SECTORS * 512))
    return made


@pytest.fixture(params=HANDLERS)
def device(request: pytest.FixtureRequest, path: Path) -> Iterator[BlockDevice]:
    with BlockDevice(Disk(path), native=request.param == "native") as made:
        yield made


class Driver:
    """The driver of ring `index`, which lies in `memory`; it writes sectors, each with a number, in `SLOTS` buffers.

    `done` counts how often each number came back.
    """

    def __init__(self, raw: RawFrontend, memory: memoryview, index: int = 0) -> None:
        self.raw, self.index, self._memory = raw, index, memory
        self._at = index << 15
        self._buffers = BUFFERS + (index << 15)
        descriptors, available, used = ring_sizes(SIZE)
        self._parts = (0, descriptors, descriptors + -(-available // 4) * 4)
        starts = [self._at + part for part in self._parts]
        parts = [memory[start : start + size] for start, size in zip(starts, (descriptors, available, used), strict=True)]
        self.ring = DriverQueue(SIZE, *parts)
        self._slots = list(range(SLOTS))
        self._flying: dict[int, tuple[int, int]] = {}
        self.sent = 0
        self.done: list[int] = []
        self.kick = self.call = OwnedFd(-1)

    def start(self, base: int) -> None:
        """Start the ring with new eventfds."""
        at = self._at
        self.raw.accepted(Q.SET_VRING_NUM, VringState(self.index, SIZE))
        self.raw.accepted(Q.SET_VRING_BASE, VringState(self.index, base))
        self.raw.accepted(Q.SET_VRING_ADDR, VringAddr(self.index, 0, at, at + self._parts[2], at + self._parts[1], 0))
        self.kick = _another(self.kick)
        self.new_call()
        self.raw.accepted(Q.SET_VRING_KICK, U64(self.index), fds=[self.kick])
        self.raw.accepted(Q.SET_VRING_ENABLE, VringState(self.index, 1))

    def new_call(self) -> None:
        """Put another call eventfd in place."""
        self.call = _another(self.call)
        self.raw.accepted(Q.SET_VRING_CALL, U64(self.index), fds=[self.call])

    def stop(self) -> int:
        """Stop the ring; where it stopped."""
        return VringState.unpack(self.raw.reply(Q.GET_VRING_BASE, VringState(self.index, 0)).payload).num

    def offer(self, count: int) -> None:
        """Offer writes, as many as there are slots for, and kick."""
        for _ in range(min(count, len(self._slots))):
            slot = self._slots.pop()
            start = self._buffers + slot * 1024
            data = self.sent.to_bytes(8, "little") * 64
            self._memory[start : start + 16 + 512 + 1] = (
                HEADER.pack(BlockRequest.OUT, 0, self.sector(self.sent)) + data + b"\xff"
            )
            head = self.ring.add([(start, 16), (start + 16, 512)], [(start + 528, 1)])
            self._flying[head] = (slot, self.sent)
            self.sent += 1
            self.done.append(0)
        os.eventfd_write(self.kick.fileno(), 1)

    def sector(self, number: int) -> int:
        """Where a request writes."""
        return (number * 4 + self.index) % SECTORS

    def collect(self) -> None:
        """Count what came back. It was done."""
        while done := self.ring.collect():
            slot, number = self._flying.pop(done[0])
            assert self._memory[self._buffers + slot * 1024 + 528] == 0
            assert done[1] == 1
            self.done[number] += 1
            self._slots.append(slot)

    def finish(self) -> None:
        """Wait until nothing is in flight; each wait ends with a call."""
        self.collect()
        while self._flying:
            assert wait([self.call], time.monotonic() + DEADLINE), f"{len(self._flying)} requests do not come back"
            drain(self.call.fileno())
            self.collect()

    def check(self, path: Path) -> None:
        """Each request was done once, and what is on the disk is what the last ones wrote."""
        assert self.done == [1] * self.sent
        last = {self.sector(number): number for number in range(self.sent)}
        content = path.read_bytes()
        for sector, number in last.items():
            assert content[sector * 512 : sector * 512 + 512] == number.to_bytes(8, "little") * 64

    def close(self) -> None:
        for fd in (self.kick, self.call):
            fd.close()


def _another(old: OwnedFd) -> OwnedFd:
    """Another eventfd; the old one is closed, so that its number is soon another's."""
    old.close()
    return OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


@pytest.mark.timeout(120)
def test_q30_a_thousand_stops_under_load_lose_and_repeat_nothing(device: BlockDevice, path: Path) -> None:
    with raw_frontend(device) as raw:
        raw.negotiate(features=FEATURES | FLUSH)
        memory = map_file(raw.share_memory().fileno(), MEMORY, 0)
        driver = Driver(raw, memory)
        driver.start(0)
        for cycle in range(CYCLES if device.compiled() else CYCLES // 5):
            driver.offer(1 + cycle % SLOTS)
            base = driver.stop()
            driver.collect()
            assert base == sum(driver.done) & 0xFFFF
            driver.start(base)
        driver.offer(SLOTS)
        driver.finish()
        driver.check(path)
        driver.stop()
        driver.close()
        assert raw.served.backend.counters.broken == 0


@pytest.mark.parametrize("spin", [0, 50, 1000])
def test_another_call_is_used_from_its_acknowledgement_on(device: BlockDevice, path: Path, spin: int) -> None:
    """QEMU replaces it while requests are under way."""
    device.spin = spin
    with raw_frontend(device) as raw:
        raw.negotiate(features=FEATURES | FLUSH)
        driver = Driver(raw, map_file(raw.share_memory().fileno(), MEMORY, 0))
        driver.start(0)
        for round_ in range(200):
            driver.offer(1 + round_ % SLOTS)
            driver.new_call()
            driver.collect()
            driver.offer(1)
            driver.finish()
        driver.check(path)
        driver.stop()
        driver.close()


def test_several_queues_are_stopped_one_by_one(path: Path) -> None:
    with BlockDevice(Disk(path), num_queues=4) as device, raw_frontend(device) as raw:
        raw.negotiate(features=FEATURES | FLUSH)
        memory = map_file(raw.share_memory().fileno(), MEMORY, 0)
        drivers = [Driver(raw, memory, index) for index in range(4)]
        bases = [0] * 4
        for driver in drivers:
            driver.start(0)
        for cycle in range(40):
            for driver in drivers:
                driver.offer(5)
            one = drivers[cycle % 4]
            bases[one.index] = one.stop()
            for driver in drivers:
                if driver is not one:
                    driver.finish()
            one.start(bases[one.index])
        for driver in drivers:
            driver.finish()
            driver.check(path)
            driver.stop()
            driver.close()


def test_memory_is_replaced_and_added_under_load(device: BlockDevice, path: Path) -> None:
    with raw_frontend(device) as raw, memory_file(4, seal=True) as more:
        raw.negotiate(features=FEATURES | FLUSH)
        memory_fd = raw.share_memory()
        driver = Driver(raw, map_file(memory_fd.fileno(), MEMORY, 0))
        driver.start(0)
        first, second = MemoryRegion(0, MEMORY, 0, 0), MemoryRegion(1 << 30, 4 * 4096, 1 << 30, 0)
        for round_ in range(100):
            driver.offer(SLOTS)
            tables = [([first], [memory_fd]), ([first, second], [memory_fd, more])]
            regions, fds = tables[round_ % 2]
            raw.accepted(Q.SET_MEM_TABLE, MemoryTable(regions), fds=fds)
            driver.finish()
        driver.check(path)
        driver.stop()
        driver.close()


def test_what_is_written_after_logging_began_is_logged(path: Path) -> None:
    """Compiled code, which logs nothing, has left when SET_FEATURES is acknowledged."""
    with BlockDevice(Disk(path)) as device, raw_frontend(device) as raw, memory_file(1, seal=True) as log:
        raw.negotiate(features=FEATURES | FLUSH, protocol=PROTOCOL_FEATURES | 1 << ProtocolFeature.LOG_SHMFD)
        memory = map_file(raw.share_memory().fileno(), MEMORY, 0)
        driver = Driver(raw, memory)
        driver.start(0)
        bits = map_file(log.fileno(), 4096, 0)
        raw.reply(Q.SET_LOG_BASE, Log(4096, 0), fds=[log])
        for _ in range(20):
            raw.accepted(Q.SET_FEATURES, U64(FEATURES | FLUSH | 1 << VhostFeature.LOG_ALL))
            bits[:] = bytes(4096)
            driver.offer(SLOTS)
            driver.finish()
            marked = int.from_bytes(bits, "little")
            assert {page for page in range(256) if marked >> page & 1} >= set(range(BUFFERS // 4096, BUFFERS // 4096 + 4))
            raw.accepted(Q.SET_FEATURES, U64(FEATURES | FLUSH))
            bits[:] = bytes(4096)
            driver.offer(SLOTS)
            driver.finish()
            if device.compiled():
                assert bytes(bits) == bytes(4096)
        driver.check(path)
        driver.stop()
        driver.close()


def test_what_is_in_progress_when_logging_begins_is_logged(path: Path) -> None:
    """What comes back after SET_FEATURES was acknowledged is in the log, whenever it was begun."""
    size, count, memory_size = 256 << 10, 14, 4 << 20
    with BlockDevice(Disk(path)) as device, raw_frontend(device) as raw, memory_file(1, seal=True) as log:
        raw.negotiate(features=FEATURES | FLUSH, protocol=PROTOCOL_FEATURES | 1 << ProtocolFeature.LOG_SHMFD)
        memory = map_file(raw.share_memory(memory_size).fileno(), memory_size, 0)
        driver = Driver(raw, memory)
        driver.start(0)
        bits = map_file(log.fileno(), 4096, 0)
        raw.reply(Q.SET_LOG_BASE, Log(4096, 0), fds=[log])
        for _ in range(30):
            bits[:] = bytes(4096)
            pages = {}
            for slot in range(count):
                memory[0x8000 + 16 * slot : 0x8010 + 16 * slot] = HEADER.pack(BlockRequest.IN, 0, slot)
                start = (512 << 10) + size * slot
                pages[driver.ring.add([(0x8000 + 16 * slot, 16)], [(start, size), (0x9000 + slot, 1)])] = start // 4096
            os.eventfd_write(driver.kick.fileno(), 1)
            raw.accepted(Q.SET_FEATURES, U64(FEATURES | FLUSH | 1 << VhostFeature.LOG_ALL))
            while done := driver.ring.collect():
                del pages[done[0]]
            late = dict(pages)
            while pages:
                if done := driver.ring.collect():
                    del pages[done[0]]
                else:
                    assert wait([driver.call], time.monotonic() + DEADLINE), f"{len(pages)} requests do not come back"
                    drain(driver.call.fileno())
            marked = int.from_bytes(bits, "little")
            assert [page for page in late.values() if not marked >> page & 1] == []
            raw.accepted(Q.SET_FEATURES, U64(FEATURES | FLUSH))
        driver.stop()
        driver.close()


@pytest.mark.parametrize("left", [0, 4096], ids=["nothing", "the ring's page"])
def test_m06_memory_that_is_cut_off_breaks_the_queue_alone(device: BlockDevice, left: int) -> None:
    """Compiled code works on it without copies, and survives its end."""
    with raw_frontend(device) as raw, memory_file(MEMORY // 4096, seal=False) as file:
        raw.negotiate(features=FEATURES | FLUSH)
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, MEMORY, 0, 0)]), fds=[file])
        memory = map_file(file.fileno(), MEMORY, 0)
        driver = Driver(raw, memory)
        driver.start(0)
        driver.offer(SLOTS)
        driver.finish()
        broken = raw.eventfd()
        raw.accepted(Q.SET_VRING_ERR, U64(0), fds=[broken])
        if left:
            driver.offer(1)
        os.ftruncate(file.fileno(), left)
        os.eventfd_write(driver.kick.fileno(), 1)
        if left:
            wait_until(
                lambda: raw.served.backend.counters.broken == 1 or driver.ring.collect() is not None, "it is done or broken"
            )
        else:
            assert wait([broken], time.monotonic() + DEADLINE), "the queue is broken"
            assert raw.served.backend.counters.broken == 1
        raw.alive()
        driver.stop()
        driver.close()


@pytest.mark.parametrize("handler", HANDLERS)
def test_p07_a_signal_under_load_ends_it(path: Path, handler: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        options = words(BLK, "--fd", str(theirs.fileno()), "--blk-file", path, "--handler", handler)
        back = Program(options, pass_fds=[theirs.fileno()])
    with back, Frontend(ours) as front:
        front.share_memory(1 << 20)
        queue = front.start_queue(0, size=SIZE)
        for _ in range(SLOTS):
            queue.submit([HEADER.pack(BlockRequest.IN, 0, 0)], [4096, 1])
        queue.completions()
        queue.submit([HEADER.pack(BlockRequest.IN, 0, 0)], [4096, 1])
        queue.notify()
        back.signal(signal.SIGTERM)
        assert back.end(2.0) == 0
