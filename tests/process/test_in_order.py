"""A back-end whose driver has taken IN_ORDER: requests come back as they were taken, whatever the device keeps."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import KEEP, DescriptorChain, Device, Queue, _native
from vhostuser.device import CompiledHandler, Keep
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Inflight, VringState
from vhostuser.testing import DEADLINE, Joined, ServedRawFrontend, joined, raw_frontend, wait_until
from vhostuser.testing.raw_frontend import FEATURES, PROTOCOL_FEATURES
from vhostuser.virtio.block import HEADER, BlockRequest
from vhostuser.virtio.formats import PACKED, SPLIT, DriverHalf, new_driver
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import WRAP

from ..wire.test_inflight import area_of
from .test_kept import Keeper

Q = FrontendRequest
IN_ORDER = 1 << Feature.IN_ORDER
SIZE = 16
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Joined, Keeper]]:
    device = Keeper()
    with joined(device, packed=bool(request.param), in_order=True) as both:
        both.frontend.share_memory(1 << 20)
        yield both, device


def submitted(queue: Queue, *requests: bytes) -> list[int]:
    tickets = [queue.submit([data], [8]) for data in requests]
    queue.notify()
    return tickets


def taken(queue: Queue, count: int) -> list[tuple[int, bytes]]:
    """So many completions, in the order in which they came."""
    rows: list[tuple[int, bytes]] = []
    while len(rows) < count:
        rows += [(each.ticket, each.data) for each in queue.completions(DEADLINE)]
    return rows


def test_what_is_completed_out_of_turn_comes_back_in_turn(pair: tuple[Joined, Keeper]) -> None:
    (frontend, served), device = pair
    assert "IN_ORDER" in frontend.features
    queue = frontend.start_queue(0, size=16)
    for _ in range(5):
        requests = [b"first", b"second", b"third"]
        tickets = submitted(queue, *requests)
        wait_until(lambda: len(device.kept) == 3, "three are kept")
        for which in (1, 1, 0):
            device.finish(which)
        assert taken(queue, 3) == list(zip(tickets, requests, strict=True))
    assert not served.backend.counters.broken


def test_what_is_done_at_once_waits_for_what_is_kept_before_it(pair: tuple[Joined, Keeper]) -> None:
    (frontend, _), device = pair
    queue, other = frontend.start_queue(0, size=16), frontend.start_queue(1, size=16)
    tickets = submitted(queue, b"now", b"keep", b"now", b"at once", b"last")
    assert taken(queue, 1) == [(tickets[0], b"done")]
    wait_until(lambda: len(device.kept) == 2, "all are taken")
    assert other.exchange(b"now", reply_size=4) == b"done", "another queue is not held up"
    device.finish(1)
    assert other.exchange(b"now", reply_size=4) == b"done"
    assert not queue._collect(), "nothing comes back before its turn"
    device.finish(0)
    assert taken(queue, 4) == list(zip(tickets[1:], (b"keep", b"done", b"done", b"last"), strict=True))
    assert queue.exchange(b"now", reply_size=4) == b"done"


def test_a_chain_that_was_completed_twice_comes_back_once(pair: tuple[Joined, Keeper]) -> None:
    (frontend, served), device = pair
    queue = frontend.start_queue(0, size=16)
    tickets = submitted(queue, b"one", b"two")
    wait_until(lambda: len(device.kept) == 2, "two are kept")
    number, chain, _ = device.kept[1]
    device.finish(1)
    device.complete(number, chain)
    device.finish(0)
    device.complete(number, chain)
    assert taken(queue, 2) == list(zip(tickets, (b"one", b"two"), strict=True))
    assert queue.exchange(b"now", reply_size=4) == b"done"
    assert not served.backend.counters.broken


def test_without_the_feature_nothing_is_held_back() -> None:
    device = Keeper()
    with joined(device) as (frontend, _):
        assert "IN_ORDER" not in frontend.features
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        first, second = submitted(queue, b"keep", b"now")
        assert taken(queue, 1) == [(second, b"done")]
        device.finish(0)
        assert taken(queue, 1) == [(first, b"keep")]


class Free(Keeper):
    """Keeps requests until the driver has heard of later ones."""

    in_order = False


def test_a_device_may_say_that_it_has_no_order() -> None:
    with joined(Free(), in_order=True) as (frontend, _):
        assert "IN_ORDER" not in frontend.features
    with raw_frontend(Free()) as raw:
        raw.negotiate()
        raw.refused(Q.SET_FEATURES, U64(FEATURES | IN_ORDER))


class Batches(Device):
    """Answers all that waits at once."""

    queue_sizes = (16,)

    def process_batch(self, queue: int, chains: Sequence[DescriptorChain]) -> None:
        for chain in reversed(chains):
            chain.write(chain.read())


@formats
def test_batches_come_back_in_order(packed: bool) -> None:
    with joined(Batches(), packed=packed, in_order=True) as (frontend, _):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        requests = [b"%d" % at for at in range(7)]
        for _ in range(10):
            tickets = submitted(queue, *requests)
            assert taken(queue, 7) == list(zip(tickets, requests, strict=True))


class Rig:
    """A raw front-end that has taken IN_ORDER, and the driver of queue 0, with requests of four bytes."""

    def __init__(self, raw: ServedRawFrontend, *, packed: bool, tracked: bool) -> None:
        self.raw, self.form = raw, PACKED if packed else SPLIT
        features = FEATURES | IN_ORDER | packed << Feature.RING_PACKED
        raw.negotiate(features=features, protocol=PROTOCOL_FEATURES | tracked << ProtocolFeature.INFLIGHT_SHMFD)
        if tracked:
            with area_of(raw) as area:
                body = Inflight(os.fstat(area.fileno()).st_size, 0, 2, SIZE)
                raw.accepted(Q.SET_INFLIGHT_FD, body, fds=[area])
        self.memory = memoryview(mmap.mmap(raw.share_memory().fileno(), 1 << 20))
        sizes = self.form.sizes(SIZE)
        starts = (0, sizes[0], sizes[0] + -(-sizes[1] // 4) * 4)
        parts = [self.memory[at : at + size] for at, size in zip(starts, sizes, strict=True)]
        self.driver: DriverHalf | None = new_driver(features, SIZE, *parts)
        self.places: dict[int, int] = {}
        self.came: list[bytes] = []
        self.start(self.form.first_base)

    def start(self, base: int) -> None:
        self.raw.set_up_queue(size=SIZE, base=base, ring=self.form)

    def stop(self) -> int:
        return VringState.unpack(self.raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num

    def base(self, taken: int, done: int) -> int:
        """The base behind so many requests, each of two descriptors, of which so many are done."""
        return (2 * done | WRAP) << 16 | 2 * taken | WRAP if self.form.is_packed else taken

    def ask(self, *requests: bytes) -> None:
        for request in requests:
            at = 0x10000 + 16 * len(self.places)
            self.memory[at : at + 8] = request + bytes(4)
            assert self.driver
            self.places[self.driver.add([(at, 4)], [(at + 4, 4)])] = at + 4
        assert self.raw.kick
        os.eventfd_write(self.raw.kick.fileno(), 1)

    def answers(self) -> list[bytes]:
        """All that came back so far."""
        while self.driver and (done := self.driver.collect()):
            at = self.places[done[0]]
            self.came.append(bytes(self.memory[at : at + done[1]]))
        return self.came

    def close(self) -> None:
        """Let go of the memory."""
        self.driver, self.memory = None, memoryview(b"")


@contextmanager
def rig(device: Device, packed: bool, *, tracked: bool = False) -> Iterator[Rig]:
    with raw_frontend(device) as raw:
        made = Rig(raw, packed=packed, tracked=tracked)
        try:
            yield made
        finally:
            made.close()


@formats
def test_a_stop_waits_for_all_of_them(packed: bool) -> None:
    device = Keeper()
    device.drain_timeout = DEADLINE
    with rig(device, packed) as ring:
        ring.ask(b"one ", b"two ", b"six ")
        wait_until(lambda: len(device.kept) == 3, "all are kept")
        device.finish(1)
        ring.raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        device.finish(1)
        device.finish(0)
        assert VringState.unpack(ring.raw.receive().payload).num == ring.base(3, 3)
        assert ring.answers() == [b"one ", b"two ", b"six "]


@formats
@pytest.mark.parametrize("tracked", [False, True])
def test_a_stop_that_does_not_wait_leaves_all_from_the_first_that_is_not_done_to_be_done_again(
    packed: bool, tracked: bool
) -> None:
    """Or what is given back next would say that those were done. The base says so, or the inflight area."""
    device = Keeper()
    device.drain_timeout = 0.05
    with rig(device, packed, tracked=tracked) as ring:
        ring.ask(b"good", b"lost", b"late", b"more")
        wait_until(lambda: len(device.kept) == 4, "all are kept")
        device.finish(0)
        device.finish(1)
        wait_until(lambda: ring.answers() == [b"good"], "the first comes back")
        base = ring.stop()
        assert base == ring.base(4 if tracked else 1, 1)
        device.finish(0)  # in vain
        ring.start(base)
        wait_until(lambda: len(device.kept) == 4, "three are taken again")
        assert [request for _, _, request in device.kept[1:]] == [b"lost", b"late", b"more"]
        device.finish(0)  # of before the stop: in vain, too
        for which in (2, 1):
            device.finish(which)
            assert ring.answers() == [b"good"]
        device.finish(0)
        wait_until(lambda: ring.answers() == [b"good", b"lost", b"late", b"more"], "and come back")
        assert not ring.raw.served.backend.counters.broken


class KeepingDisk(BlockDevice):
    """A disk that keeps each request to discard, which compiled code leaves to Python."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.seen: list[int] = []
        self.kept: list[DescriptorChain] = []

    def compiled(self) -> CompiledHandler | None:
        return self._disk.compiled

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:  # type: ignore[override]
        self.seen.append(HEADER.unpack(chain.readable[0])[0])
        if self.seen[-1] == BlockRequest.DISCARD:
            self.kept.append(chain)
            return KEEP
        return super().process(queue, chain)


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here")
@formats
def test_compiled_code_serves_nothing_while_anything_is_held_back(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(at % 251 for at in range(16 * 512)))
    with KeepingDisk(Disk(path)) as device, joined(device, packed=packed, in_order=True) as (frontend, _):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=64)

        def read(sector: int) -> int:
            return queue.submit([HEADER.pack(BlockRequest.IN, 0, sector)], [512, 1])

        def answer(sector: int) -> bytes:
            return path.read_bytes()[512 * sector : 512 * sector + 512] + b"\0"

        for turn in range(3):
            assert queue.finish(read(turn)).data == answer(turn)
            assert not device.seen, "compiled code did that"
            ticket = queue.submit([HEADER.pack(BlockRequest.DISCARD, 0, 0), bytes(16)], [1])
            tickets = [ticket, *(read(sector) for sector in range(8))]
            queue.notify()
            wait_until(lambda: len(device.seen) == 9, "Python does all of them")
            assert not queue._collect(), "nothing comes back before its turn"
            chain = device.kept.pop()
            chain.write(b"\0")
            device.complete(0, chain)
            assert taken(queue, 9) == list(zip(tickets, [b"\0", *map(answer, range(8))], strict=True))
            device.seen.clear()
