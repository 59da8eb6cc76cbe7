"""A request that does not end: a stop leaves it to itself after a while, and nothing of it reaches what comes next."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator

import pytest

from vhostuser import DescriptorChain, Device
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import DEADLINE, ServedRawFrontend, raw_frontend, wait_until
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.socket import wait
from vhostuser.virtio.driver import DriverQueue
from vhostuser.virtio.split import ring_sizes

Q = FrontendRequest
SIZE = 16
REQUESTS, ANSWERS = 0x10000, 0x20000


class Stuck(Device):
    """Answers at once, but for `wait`, which takes until it is let go."""

    queue_sizes = (SIZE,)
    drain_timeout = 0.05

    def __init__(self) -> None:
        self.waits, self.goes_on = threading.Event(), threading.Event()
        self.seen: list[bytes] = []

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.seen.append(request := chain.read())
        if request == b"wait":
            self.waits.set()
            self.goes_on.wait(DEADLINE)
        chain.write(b"ok")


class Rig:
    """A raw front-end, its device, and the driver of queue 0 in the memory that they share."""

    def __init__(self, raw: ServedRawFrontend, device: Stuck) -> None:
        self.raw, self.device = raw, device
        raw.negotiate()
        self.memory = memoryview(mmap.mmap(raw.share_memory().fileno(), 1 << 20))
        self.set_up()

    def set_up(self) -> None:
        """Begin with an empty ring at address 0."""
        self.memory[:0x4000] = bytes(0x4000)
        self.raw.set_up_queue(size=SIZE)
        sizes = ring_sizes(SIZE)
        used = sizes[0] + -(-sizes[1] // 4) * 4
        starts = (0, sizes[0], used)
        parts = [self.memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        self.driver: DriverQueue | None = DriverQueue(SIZE, *parts)

    def close(self) -> None:
        """Let go of the memory."""
        self.driver, self.memory = None, memoryview(b"")

    def ask(self, *requests: bytes) -> None:
        """Offer requests of four bytes, and kick once."""
        for at, request in enumerate(requests):
            start = REQUESTS + 16 * at
            self.memory[start : start + 4] = request
            assert self.driver is not None
            self.driver.add([(start, 4)], [(ANSWERS + 16 * at, 2)])
        assert self.raw.kick is not None
        os.eventfd_write(self.raw.kick.fileno(), 1)

    def answers(self) -> int:
        """How many requests came back so far."""
        count = 0
        while self.driver and self.driver.collect():
            count += 1
        return count


@pytest.fixture
def rig() -> Iterator[Rig]:
    device = Stuck()
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)
        try:
            yield rig
        finally:
            device.goes_on.set()
            rig.close()


def test_q29_what_was_done_before_it_is_given_back_before_the_stop_is_answered(rig: Rig) -> None:
    rig.ask(b"1st ", b"2nd ", b"wait", b"next")
    assert rig.device.waits.wait(DEADLINE)
    reply = rig.raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    assert VringState.unpack(reply.payload).num == 3
    assert rig.answers() == 2
    rig.device.goes_on.set()
    rig.set_up()
    rig.ask(b"last")
    wait_until(lambda: rig.answers() == 1, "the ring that was set up anew is served")
    assert rig.device.seen == [b"1st ", b"2nd ", b"wait", b"last"]


def test_q35_it_does_not_break_the_ring_that_is_set_up_after_a_reset(rig: Rig) -> None:
    rig.ask(b"wait")
    assert rig.device.waits.wait(DEADLINE)
    rig.raw.accepted(Q.RESET_DEVICE)
    rig.set_up()
    rig.ask(b"new1", b"new2")
    rig.device.goes_on.set()
    wait_until(lambda: len(rig.device.seen) == 3, "the new requests are processed")
    wait_until(lambda: rig.answers() == 2 or rig.raw.served.backend.counters.broken > 0, "they come back")
    assert rig.raw.served.backend.counters.broken == 0


def test_p14_without_a_thread_for_the_queues_a_start_is_refused_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_more(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with raw_frontend(Stuck()) as raw:
        raw.negotiate()
        raw.share_memory()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            with pytest.raises(AssertionError, match="refused"):
                raw.set_up_queue(size=SIZE)
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
        assert any("queues" in thread.name for thread in threading.enumerate())
        raw.close()
        raw.served.join()
        assert raw.served.error is None


def test_q29_a_device_that_waits_for_its_host_alone_is_waited_for() -> None:
    device = Stuck()
    device.drain_timeout = DEADLINE
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)
        rig.ask(b"wait")
        assert device.waits.wait(DEADLINE)
        raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        device.goes_on.set()
        assert VringState.unpack(raw.receive().payload).num == 1
        assert rig.answers() == 1
        rig.close()


class Spoiler(Device):
    """Leaves nonsense in the request that it was given."""

    queue_sizes = (SIZE,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.head = "no number"  # type: ignore[assignment]


def test_p19_whatever_a_device_does_to_a_request_costs_its_queue_alone() -> None:
    with raw_frontend(Spoiler()) as raw:
        rig = Rig(raw, Stuck())
        rig.ask(b"any ")
        assert raw.err is not None
        assert wait([raw.err], time.monotonic() + DEADLINE), "the queue is broken"
        assert os.eventfd_read(raw.err.fileno()) == raw.served.backend.counters.broken == 1
        assert any("queues" in thread.name for thread in threading.enumerate())
        raw.alive()
        rig.close()


@pytest.mark.parametrize("name", [Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR])
def test_an_eventfd_of_the_front_end_never_blocks(name: int) -> None:
    """It can take a kick back, or fill a call's counter, between a look at it and its use."""
    with raw_frontend(Stuck()) as raw, OwnedFd(os.eventfd(0, os.EFD_CLOEXEC)) as fd:
        raw.negotiate()
        raw.accepted(name, U64(0), fds=[fd])
        assert not os.get_blocking(fd.fileno())


@pytest.mark.parametrize("name", [Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR])
def test_an_fd_of_a_path_is_no_eventfd(name: int) -> None:
    with raw_frontend(Stuck()) as raw, OwnedFd(os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)) as fd:
        raw.negotiate()
        raw.refused(name, U64(0), fds=[fd])
