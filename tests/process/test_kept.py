"""Requests that a device keeps and completes later, and queues from which it takes none for now."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vhostuser import KEEP, DescriptorChain, Device, LocalProtocolError
from vhostuser.device import Keep
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import VringState
from vhostuser.testing import DEADLINE, Joined, joined, raw_frontend, wait_until

from .test_undrained import Rig

Q = FrontendRequest


class Keeper(Device):
    """Keeps every request but `now`, until the test completes it."""

    queue_sizes: tuple[int, ...] = (16, 16)
    drain_timeout = 0.2

    def __init__(self) -> None:
        self.kept: list[tuple[int, DescriptorChain, bytes]] = []

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        request = chain.read()
        if request == b"now":
            chain.write(b"done")
            return None
        if request == b"at once":
            chain.write(b"done")
            self.complete(queue, chain)
        else:
            self.kept.append((queue, chain, request))
        return KEEP

    def finish(self, which: int) -> None:
        """Complete one of them with what was asked."""
        queue, chain, request = self.kept.pop(which)
        chain.write(request)
        self.complete(queue, chain)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Joined, Keeper]]:
    device = Keeper()
    with joined(device, packed=bool(request.param)) as both:
        both.frontend.share_memory(1 << 20)
        yield both, device


def test_a_kept_request_comes_back_when_it_is_completed(pair: tuple[Joined, Keeper]) -> None:
    (frontend, _), device = pair
    queue = frontend.start_queue(0, size=16)
    tickets = [queue.submit([data], [8]) for data in (b"first", b"second", b"third")]
    queue.notify()
    assert queue.exchange(b"now", reply_size=4) == b"done", "others are not held up"
    wait_until(lambda: len(device.kept) == 3, "three are kept")
    for which in (1, 1, 0):
        device.finish(which)
    answers = [queue.finish(ticket, timeout=DEADLINE).data for ticket in tickets]
    assert answers == [b"first", b"second", b"third"]


def test_a_request_may_be_completed_before_process_says_that_it_keeps_it(pair: tuple[Joined, Keeper]) -> None:
    queue = pair[0].frontend.start_queue(0, size=16)
    assert [queue.exchange(b"at once", reply_size=4) for _ in range(40)] == [b"done"] * 40


def test_what_is_completed_twice_comes_back_once(pair: tuple[Joined, Keeper]) -> None:
    (frontend, served), device = pair
    queue = frontend.start_queue(0, size=16)
    ticket = queue.submit([b"only"], [8])
    queue.notify()
    wait_until(lambda: len(device.kept) == 1, "it is kept")
    (number, chain, _) = device.kept[0]
    device.finish(0)
    device.complete(number, chain)
    assert queue.finish(ticket, timeout=DEADLINE).data == b"only"
    assert queue.exchange(b"now", reply_size=4) == b"done"
    assert not served.backend.counters.broken


def test_p19_a_queue_that_is_none_of_the_device_is_an_error_of_its_author(pair: tuple[Joined, Keeper]) -> None:
    device = pair[1]
    with pytest.raises(LocalProtocolError, match="queue 2 is none of the device's 2"):
        device.resume(2)
    with pytest.raises(LocalProtocolError, match="queue -1 is none of the device's 2"):
        device.complete(-1, DescriptorChain(0, (), ()))


def test_without_a_front_end_nothing_happens() -> None:
    device = Keeper()
    device.resume(0)
    device.complete(0, DescriptorChain(0, (), ()))


@pytest.mark.parametrize("drained", [True, False])
def test_q29_a_stop_gives_back_what_is_completed_in_time_and_no_more(drained: bool) -> None:
    device = Keeper()
    device.drain_timeout = DEADLINE if drained else 0.05
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)  # type: ignore[arg-type]
        rig.ask(b"one ", b"two ")
        wait_until(lambda: len(device.kept) == 2, "two are kept")
        device.finish(1)
        wait_until(lambda: rig.answers() == 1, "one is given back")
        raw.request(Q.GET_VRING_BASE, VringState(0, 0))
        if drained:
            device.finish(0)
        assert VringState.unpack(raw.receive().payload).num == 2
        assert rig.answers() == int(drained)
        if not drained:
            device.finish(0)
        rig.set_up()
        rig.ask(b"new ")
        wait_until(lambda: len(device.kept) == 1, "the ring that was set up anew is served")
        device.finish(0)
        wait_until(lambda: rig.answers() == 1, "and nothing of before comes back in it")
        rig.close()


class Choosy(Device):
    """Takes requests as long as it has something to say."""

    queue_sizes = (16, 16)

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self.asked = threading.Event()

    def takes(self, queue: int) -> bool:
        self.asked.set()
        return queue == 1 or bool(self.words)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(self.words.pop(0) if queue == 0 else b"here")


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_device_that_takes_none_is_left_alone_until_it_says_so(packed: bool) -> None:
    device = Choosy()
    with joined(device, packed=packed) as (frontend, _):
        frontend.share_memory(1 << 20)
        input_queue, other = frontend.start_queue(0, size=16), frontend.start_queue(1, size=16)
        tickets = [input_queue.submit([], [8]) for _ in range(3)]
        input_queue.notify()
        assert device.asked.wait(DEADLINE)
        assert other.exchange(b"", reply_size=4) == b"here"
        for ticket, word in zip(tickets, (b"one", b"two", b"three"), strict=True):
            device.words.append(word)
            device.resume(0)
            assert input_queue.finish(ticket, timeout=DEADLINE).data == word


def test_a_stop_does_not_wait_for_what_was_not_taken() -> None:
    device = Choosy()
    device.drain_timeout = 10 * DEADLINE
    with raw_frontend(device) as raw:
        rig = Rig(raw, device)  # type: ignore[arg-type]
        rig.ask(b"any ")
        assert device.asked.wait(DEADLINE)
        assert VringState.unpack(raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 0
        rig.close()
