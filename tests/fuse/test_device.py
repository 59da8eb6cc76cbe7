"""The device around the server: its queues and configuration, its workers, and what a stop waits for."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from vhostuser.devices.fs.device import FuseDevice
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.workers import Workers
from vhostuser.errors import LocalProtocolError
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.rings import Rings
from vhostuser.testing import DEADLINE, joined, wait_until
from vhostuser.virtio.chain import DescriptorChain

from .standin import Answer, Guest, StandIn, StandInWindow, answer, body_of, guest_of, request


class Gate:
    """Where requests of some name wait until the test lets them go on."""

    def __init__(self, share: StandIn, name: str) -> None:
        self.name, self.arrived, self.open = name, threading.Semaphore(0), threading.Event()
        share.before = self._pass

    def _pass(self, name: str) -> None:
        if name == self.name:
            self.arrived.release()
            if not self.open.wait(DEADLINE):
                raise TimeoutError

    def expect(self, count: int) -> None:
        """Wait until so many more have come."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=DEADLINE)


@pytest.fixture
def gate(share: StandIn) -> Iterator[Gate]:
    """Reads wait."""
    made = Gate(share, "read")
    yield made
    made.open.set()


READ = request(Opcode.READ, body_of(Opcode.READ))


def test_the_configuration_space_names_the_share_and_counts_request_queues(share: StandIn) -> None:
    options = ShareOptions(tag="täg", num_request_queues=3, queue_size=64)
    with FuseDevice(share, options) as device:
        assert device.config == "täg".encode().ljust(36, b"\0") + (3).to_bytes(4, "little")
        assert device.queue_sizes == (64,) * 4
        assert device.virtio_id == 26
        assert dict(device.shared_memory) == {}
        with joined(device) as (frontend, _):
            assert frontend.config(0, 40) == device.config
            assert frontend.queue_count == 4


def test_a_tag_that_does_not_fit_is_refused(share: StandIn) -> None:
    with FuseDevice(share, ShareOptions(tag="t" * 36)) as device:
        assert device.config[:36] == b"t" * 36
    with pytest.raises(LocalProtocolError, match="37 bytes, at most 36"):
        FuseDevice(share, ShareOptions(tag="t" * 37))


def test_a_device_with_a_window_has_region_0(share: StandIn) -> None:
    with FuseDevice(share, ShareOptions(dax_window=4 << 20), StandInWindow()) as device:
        assert dict(device.shared_memory) == {0: 4 << 20}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_queue_of_forgets_waits_for_no_request(share: StandIn, gate: Gate, workers: int) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=workers)) as guest:
        guest.init()
        tickets = [guest.queue.submit([READ], [24]) for _ in range(4)]
        guest.queue.notify()
        gate.expect(max(1, workers))
        for _ in range(3):
            guest.tell(Opcode.FORGET, bytes(8))
            guest.tell(Opcode.INTERRUPT, bytes(8))
        assert share.names.count("forget") == 3
        assert share.names.count("read") == 0
        gate.open.set()
        assert [answer(guest.queue.finish(each, timeout=DEADLINE).data, 2).error for each in tickets] == [0] * 4


def test_request_queues_wait_for_none_of_each_other(share: StandIn, gate: Gate) -> None:
    with guest_of(share, ShareOptions(num_request_queues=2)) as guest:
        guest.init()
        other = guest.frontend.start_queue(2, size=64)
        ticket = guest.queue.submit([READ], [24])
        guest.queue.notify()
        gate.expect(1)
        assert answer(guest.exchange(request(Opcode.GETATTR, bytes(16)), queue=other), 2).error == 0
        gate.open.set()
        guest.queue.finish(ticket, timeout=DEADLINE)


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_requests_of_a_queue_are_done_at_once_as_there_are_workers(
    share: StandIn, gate: Gate, content: bytes, workers: int
) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=workers)) as guest:
        guest.init()
        tickets = [guest.queue.submit([READ], [24]) for _ in range(8)]
        guest.queue.notify()
        gate.expect(workers)
        assert not gate.arrived.acquire(blocking=False)
        threads = [each for each in threading.enumerate() if each.name.startswith("vhu-fs worker")]
        assert len(threads) == workers
        gate.open.set()
        got = [answer(guest.queue.finish(each, timeout=DEADLINE).data, 2) for each in tickets]
        assert got == [Answer(0, content[:8])] * 8


def test_a_stop_waits_for_the_requests_of_workers(share: StandIn, gate: Gate) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=2)) as guest:
        guest.init()
        for _ in range(4):
            guest.queue.submit([READ], [24])
        guest.queue.notify()
        gate.expect(2)
        rings = guest.device.queues
        assert isinstance(rings, Rings)
        opener = threading.Thread(target=lambda: _once(lambda: not rings.vrings[1].active, gate.open.set))
        opener.start()
        assert guest.frontend.stop_queue(1) == 5
        assert share.names.count("read") == 4
        opener.join()


def _once(holds: Callable[[], bool], then: Callable[[], None]) -> None:
    wait_until(holds, "the stop has begun")
    then()


def test_what_no_worker_has_begun_at_a_reset_is_never_done(share: StandIn, gate: Gate) -> None:
    options = ShareOptions(thread_pool_size=1)
    with FuseDevice(share, options) as device:
        device.drain_timeout = 0.01
        with joined(device) as (frontend, _):
            frontend.share_memory(1 << 20)
            guest = Guest(frontend, device)
            guest.init()
            for _ in range(4):
                guest.queue.submit([READ], [24])
            guest.queue.notify()
            gate.expect(1)
            frontend.reset()
            guest.start()
            begun = answer(guest.exchange(request(Opcode.INIT, body_of(Opcode.INIT)), queue=guest.hiprio), 2)
            assert begun.error == 0
            gate.open.set()
            assert guest.ask(Opcode.GETATTR, bytes(16)).error == 0
            assert share.names.count("read") == 1


def test_many_requests_in_flight_are_answered_each_with_its_own(share: StandIn, content: bytes) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=4)) as guest:
        guest.init()
        for _ in range(5):
            offers = {}
            for at in range(60):
                data = request(Opcode.READ, s.ReadIn(0, at * 100, 64).pack(), unique=at)
                offers[guest.queue.submit([data], [80])] = at
            for ticket, at in offers.items():
                got = answer(guest.queue.finish(ticket, timeout=DEADLINE).data, at)
                assert got == Answer(0, content[at * 100 : at * 100 + 64])
        assert guest.device.counts["READ"] == 300
        assert guest.device.counts["bytes_read"] == 300 * 64


def test_a_bug_in_a_worker_costs_its_request_only(share: StandIn) -> None:
    share.fails["getattr"] = SystemExit(1)
    with guest_of(share, ShareOptions(thread_pool_size=1)) as guest:
        guest.init()
        for _ in range(3):
            assert guest.ask(Opcode.GETATTR, bytes(16)) == Answer(errno.EIO, b"")
        share.fails.clear()
        assert guest.ask(Opcode.GETATTR, bytes(16)).error == 0


def test_workers_begin_when_they_are_needed_and_end() -> None:
    done = threading.Semaphore(0)
    workers = Workers(3, lambda queue, chain: done.release())
    assert threading.active_count() == (before := threading.active_count())
    for _ in range(10):
        workers.put(1, DescriptorChain(0, [], []))
        assert done.acquire(timeout=DEADLINE)
    assert 0 < threading.active_count() - before <= 3
    workers.close(DEADLINE)
    assert threading.active_count() == before


def test_a_device_ends_with_requests_in_flight(share: StandIn, gate: Gate) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=2)) as guest:
        guest.init()
        guest.queue.submit([READ], [24])
        guest.queue.notify()
        gate.expect(1)
        gate.open.set()
    assert share.closed
    assert os.fstat(share.fd)
