"""A queue that the back-end declares broken, by the eventfd of SET_VRING_ERR: the driver hears it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from vhostuser import DeadlineExpired, Disconnected, Frontend, QueueBroken
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64
from vhostuser.queue import Queue
from vhostuser.testing import DEADLINE, RawBackend, joined, message
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd

from .devices import Answering

BROKEN = "queue 0: the back-end declares it broken"
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@contextmanager
def started(packed: bool) -> Iterator[tuple[Frontend, Queue]]:
    """A queue of a device that echoes."""
    with joined(Answering(lambda chain: chain.write(chain.read())), packed=packed) as both:
        assert ("RING_PACKED" in both.frontend.features) is packed
        both.frontend.share_memory(1 << 20)
        yield both.frontend, both.frontend.start_queue(0, size=16)


def spoil(queue: Queue, index: int = 0) -> None:
    """Let a descriptor point to nowhere."""
    start = queue.addresses.descriptor + 16 * index
    queue._memory.view[start : start + 8] = b"\xff" * 8


@formats
@pytest.mark.parametrize("waits", ["finish", "completions"])
def test_q35_a_broken_queue_is_heard_of_at_once_and_a_new_start_revives_it(packed: bool, waits: str) -> None:
    with started(packed) as (frontend, first):
        queue = first
        for turn in range(3):
            assert queue.exchange(b"ping", 4, timeout=DEADLINE) == b"ping"
            ticket = queue.submit([b"x"], [1])
            for index in range(16):
                spoil(queue, index)
            wait: Callable[[], object] = partial(queue.finish, ticket) if waits == "finish" else queue.completions
            with pytest.raises(QueueBroken, match=BROKEN):
                wait()
            with pytest.raises(QueueBroken, match=BROKEN):  # and it stays so
                queue.exchange(b"x", 1)
            assert queue.in_flight == (waits == "completions")
            frontend.stop_queue(0)
            queue = frontend.start_queue(0, size=16 << turn)
        assert queue.exchange(b"pong", 4, timeout=DEADLINE) == b"pong"


@formats
def test_other_queues_live_on(packed: bool) -> None:
    device = Answering(lambda chain: chain.write(chain.read()))
    device.queue_sizes = (16, 16)
    with joined(device, packed=packed) as both:
        both.frontend.share_memory(1 << 20)
        broken, whole = (both.frontend.start_queue(index, size=16) for index in range(2))
        ticket = broken.submit([b"x"], [1])
        spoil(broken)
        with pytest.raises(QueueBroken, match=BROKEN):
            broken.finish(ticket)
        assert whole.exchange(b"ping", 4, timeout=DEADLINE) == b"ping"


@formats
def test_what_was_done_before_the_queue_broke_still_counts(packed: bool) -> None:
    with started(packed) as (_, queue):
        first = queue.submit([b"good"], [4])
        second = queue.submit([b"x"], [1])
        spoil(queue, 2)
        assert queue.finish(first, timeout=DEADLINE).data == b"good"
        with pytest.raises(QueueBroken, match=BROKEN):
            queue.finish(second)


def test_a_back_end_may_say_so_of_its_own_accord_and_then_go() -> None:
    kept: list[OwnedFd] = []

    def keep(frame: Frame[OwnedFd]) -> bytes:
        kept.append(OwnedFd(os.dup(frame.fds[0].fileno())))
        return message(frame.request, U64(0), flags=ACK)

    with RawBackend() as raw, raw.frontend() as frontend:
        raw.raw_answers[Q.SET_VRING_ERR] = keep
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        queue.submit([b"x"], [1])
        with kept[0] as err:
            os.eventfd_write(err.fileno(), 1)
        with pytest.raises(QueueBroken, match=BROKEN):
            queue.completions()
        frontend.stop_queue(0)
        queue = frontend.start_queue(0, size=16)
        queue.submit([b"x"], [1])
        kept[1].close()
        raw.main.end()
        with pytest.raises(Disconnected):
            queue.completions()


def test_a_kick_that_is_full_is_as_good_as_set() -> None:
    """The back-end has the eventfd, too: it may fill it, and let writes wait until somebody reads."""
    kicks: list[int] = []

    def keep(frame: Frame[OwnedFd]) -> bytes:
        kicks.append(os.dup(frame.fds[0].fileno()))
        return message(frame.request, bytes(8), flags=ACK)

    with RawBackend() as raw:
        raw.raw_answers[Q.SET_VRING_KICK] = keep
        with raw.frontend() as frontend:
            frontend.share_memory(1 << 20)
            queue = frontend.start_queue(0, size=16)
            os.eventfd_read(kicks[0])
            os.eventfd_write(kicks[0], (1 << 64) - 2)
            for waits in (False, True):
                os.set_blocking(kicks[0], waits)
                with pytest.raises(DeadlineExpired, match="queue 0: no answer"):
                    queue.exchange(b"x", 1, timeout=0)
    os.close(kicks[0])
