"""Many requests in flight: in pairs of both sides, and over one arena where the device must lie."""

from __future__ import annotations

import os
import random
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest

from vhostuser import DescriptorChain, Frontend, LocalProtocolError, QueueBroken
from vhostuser.errors import DeadlineExpired, Disconnected
from vhostuser.memory.arena import Arena
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.queue import Completion, Queue
from vhostuser.testing import DEADLINE, RawBackend, joined
from vhostuser.transport.fds import HasFileno, OwnedFd
from vhostuser.virtio.split import SplitQueue, ring_sizes

from .devices import Answering


def echo(chain: DescriptorChain) -> None:
    """Write what was read, as far as it fits."""
    chain.write(chain.read())


@contextmanager
def queue_to(answer: Callable[[DescriptorChain], object], *, size: int = 16, memory: int = 1 << 20) -> Iterator[Queue]:
    """A queue of a device that answers so."""
    with joined(Answering(answer)) as both:
        both.frontend.share_memory(memory)
        yield both.frontend.start_queue(0, size=size)


def test_requests_in_flight_are_answered_by_ticket() -> None:
    with queue_to(echo) as queue:
        sent = {queue.submit([bytes([number]) * 9], [4, 5]): bytes([number]) * 9 for number in range(5)}
        assert queue.in_flight == 5
        found: list[Completion] = []
        while queue.in_flight:
            found += queue.completions(DEADLINE)
        assert {each.ticket: each.data for each in found} == sent
        assert [each.written for each in found] == [9] * 5
        assert found[0].buffers == (b"\0\0\0\0", b"\0\0\0\0\0")
        assert queue.completions() == []


def test_a_batch_is_kicked_once() -> None:
    with rig() as (queue, _):
        for _ in range(3):
            queue.submit([b"x"])
        assert not select.select([queue.kick], [], [], 0)[0]
        queue.notify()
        queue.notify()
        assert os.eventfd_read(queue.kick.fileno()) == 1
        queue.submit([b"x"])
        queue.notify()
        assert os.eventfd_read(queue.kick.fileno()) == 1


def test_a_thousand_requests_of_all_sizes_come_back_whole_and_leave_all_memory_free() -> None:
    rand = random.Random(1)
    with joined(Answering(echo)) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=64)
        arena = both.frontend._sharing.arena
        assert arena is not None
        free = arena.free
        sent: dict[int, bytes] = {}
        left = 1000
        while left or queue.in_flight:
            while left and queue.in_flight < 32:
                data = rand.randbytes(rand.randrange(1, 3000))
                sent[queue.submit([data], [len(data)])] = data
                left -= 1
            for done in queue.completions(DEADLINE):
                assert done.data == sent.pop(done.ticket)
        assert (sent, arena.free) == ({}, free)


def test_an_exchange_leaves_what_else_is_in_flight_to_its_owner() -> None:
    with queue_to(echo) as queue:
        ticket = queue.submit([b"first"], [5])
        assert queue.exchange(b"second", 6, timeout=DEADLINE) == b"second"
        assert queue.in_flight == 1
        assert [(each.ticket, each.data) for each in queue.completions(DEADLINE)] == [(ticket, b"first")]


def test_completions_among_some_tickets_leave_the_others() -> None:
    with queue_to(echo) as queue:
        first, second = (queue.submit([data], [1]) for data in (b"1", b"2"))
        assert [each.data for each in queue.completions(DEADLINE, among={second})] == [b"2"]
        assert queue.completions(among={second}) == []
        assert queue.finish(first).data == b"1"


def test_what_finds_no_room_is_not_offered_and_takes_nothing() -> None:
    with joined(Answering(echo)) as both:
        both.frontend.share_memory(1 << 16)
        queue, arena = both.frontend.start_queue(0, size=4), both.frontend._sharing.arena
        assert arena is not None
        free = arena.free
        with pytest.raises(BufferError, match="5 descriptors wanted, 4 of 4 are free"):
            queue.submit([b"x"] * 5)
        with pytest.raises(BufferError):
            queue.submit()
        with pytest.raises(MemoryError, match="65536 bytes of shared memory wanted"):
            queue.submit([b"x"], [16, 1 << 16])
        assert (arena.free, queue.in_flight) == (free, 0)
        assert queue.exchange(b"x", 1) == b"x"


def test_a_stopped_queue_says_so_and_gives_its_memory_back() -> None:
    with joined(Answering(echo)) as both:
        both.frontend.share_memory(1 << 16)
        arena = both.frontend._sharing.arena
        assert arena is not None
        for _ in range(100):  # the memory would not do for as many
            queue = both.frontend.start_queue(0, size=64)
            ticket = queue.submit([b"x"], [4096])
            both.frontend.stop_queue(0)
            for call in (queue.submit, queue.notify, queue.completions, partial(queue.finish, ticket)):
                with pytest.raises(LocalProtocolError, match="queue 0 is stopped"):
                    call()
        assert arena.free == 1 << 16


def test_a_reset_gives_all_memory_back() -> None:
    with joined(Answering(echo)) as both:
        both.frontend.share_memory(1 << 16)
        both.frontend.start_queue(0, size=16).submit([b"x"], [4096])
        both.frontend.reset()
        assert both.frontend._sharing.arena is not None
        assert both.frontend._sharing.arena.free == 1 << 16
        assert both.frontend.start_queue(0, size=16).exchange(b"ping", 4) == b"ping"


def test_after_a_reset_the_features_are_acknowledged_again_and_the_rings_stopped_before_one_starts() -> None:
    """The rust-vmm crates forget the features in RESET_DEVICE, and leave the rings running, but disabled."""
    with RawBackend(queues=3) as raw, raw.frontend() as frontend:
        frontend.share_memory(1 << 20)
        for index in (2, 0):
            frontend.start_queue(index, size=16)
        frontend.reset()
        frontend.reset()
        seen = len(raw.seen)
        frontend.start_queue(1, size=16)
        assert raw.seen[seen : seen + 4] == [Q.SET_FEATURES, Q.GET_VRING_BASE, Q.GET_VRING_BASE, Q.SET_VRING_NUM]
        seen = len(raw.seen)
        frontend.start_queue(0, size=16)
        assert raw.seen[seen] == Q.SET_VRING_NUM


def test_a_ticket_that_is_not_in_flight_is_refused() -> None:
    with queue_to(echo) as queue:
        ticket = queue.submit([b"x"], [1])
        queue.finish(ticket, timeout=DEADLINE)
        for each in (ticket, 77):
            with pytest.raises(LocalProtocolError, match=f"queue 0 has no request {each} in flight"):
                queue.finish(each)


def test_a_request_whose_deadline_expired_is_given_up_but_keeps_its_buffers_until_it_comes_back() -> None:
    go = threading.Event()

    def wait_and_echo(chain: DescriptorChain) -> None:
        go.wait(DEADLINE)
        echo(chain)

    with joined(Answering(wait_and_echo)) as both:
        both.frontend.share_memory(1 << 20)
        queue, arena = both.frontend.start_queue(0, size=16), both.frontend._sharing.arena
        assert arena is not None
        free = arena.free
        try:
            with pytest.raises(DeadlineExpired, match="no answer within 0 s"):
                queue.exchange(b"late", 4, timeout=0)
            assert arena.free == free - 32
            assert queue.in_flight == 0
            with pytest.raises(DeadlineExpired):
                queue.exchange(b"late too", 8, timeout=0)
        finally:
            go.set()
        assert queue.exchange(b"good", 4, timeout=DEADLINE) == b"good"
        assert (arena.free, queue._done) == (free, {})


def test_what_times_out_in_completions_stays_in_flight() -> None:
    with rig() as (queue, device):
        ticket = queue.submit([b"x"], [1])
        with pytest.raises(DeadlineExpired):
            queue.completions(0)
        device.answer_all()
        assert [each.ticket for each in queue.completions(0)] == [ticket]


def test_back_end_requests_are_answered_while_completions_are_awaited() -> None:
    def map_and_answer(chain: DescriptorChain) -> None:
        fd = os.memfd_create("x")
        os.ftruncate(fd, 4096)
        with OwnedFd(fd):
            device.shm[0].map(fd, shm_offset=0, len=4096)
        chain.write(b"mapped")

    device = Answering(map_and_answer)
    device.shared_memory = {0: 1 << 20}
    with joined(device) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        queue.submit([b"map"], [6])
        assert [each.data for each in queue.completions(DEADLINE)] == [b"mapped"]
        assert len(both.frontend.shm[0].mappings) == 1


# Devices that lie


class Lying:
    """The device half of a queue over the same arena; nobody waits."""

    def __init__(self, queue: Queue, arena: Arena) -> None:
        memory = GuestMemory([GuestRegion(0, 0, arena.view, ())])
        where = (queue.addresses.descriptor, queue.addresses.available, queue.addresses.used)
        table, available, self.used = (
            arena.view[start : start + size] for start, size in zip(where, ring_sizes(queue.size), strict=True)
        )
        self.half = SplitQueue(queue.size, table, available, self.used, memory)

    def answer_all(self, written: int | None = None) -> None:
        """Echo; `written` is what the device claims to have written."""
        while chain := self.half.pop():
            echo(chain)
            chain.written = chain.written if written is None else written
            self.half.push(chain)
        self.half.publish()

    def give_back(self, head: int) -> None:
        """Give this back, whether the device has it or not."""
        index = int.from_bytes(self.used[2:4], "little")
        slot = 4 + 8 * (index % self.half.size)
        self.used[slot : slot + 8] = head.to_bytes(4, "little") + bytes(4)
        self.used[2:4] = (index + 1).to_bytes(2, "little")


class Nobody:
    """A waiter to whom nothing comes: what is not there already never will be."""

    def wait_for_any(self, fds: Sequence[HasFileno], deadline: float | None = None) -> int | None:
        ready = select.select(fds, [], [], 0)[0]
        return next((fd.fileno() for fd in fds if fd in ready), None)


@contextmanager
def rig(size: int = 4) -> Iterator[tuple[Queue, Lying]]:
    """A queue, and its device, without a connection."""
    arena = Arena(1 << 16)
    queue = Queue(0, size, arena, Nobody(), 0)
    try:
        yield queue, Lying(queue, arena)
    finally:
        queue.close()
        assert arena.free == 1 << 16
        arena.close()


@pytest.mark.parametrize("head", [3, 4, 0xFFFFFFFF])
def test_a_device_that_gives_back_what_it_was_not_given_breaks_the_queue(head: int) -> None:
    with rig() as (queue, device):
        queue.submit([b"x"], [1])
        device.give_back(head)
        with pytest.raises(QueueBroken, match=f"gave back chain {head}, which it does not have"):
            queue.completions(0)
        with pytest.raises(QueueBroken):
            queue.exchange(b"x", timeout=0)


def test_a_device_that_gives_a_chain_back_twice_breaks_the_queue() -> None:
    with rig() as (queue, device):
        ticket = queue.submit([b"x"], [1])
        device.answer_all()
        assert queue.finish(ticket, timeout=0).data == b"x"
        queue.submit([b"y"], [1])
        device.answer_all()
        device.give_back(0)
        with pytest.raises(QueueBroken, match="gave back chain 0"):
            queue.completions(0)


@pytest.mark.parametrize("claimed", [9, 1 << 31, (1 << 32) - 1])
def test_a_claim_to_have_written_more_than_fits_is_cut(claimed: int) -> None:
    with rig() as (queue, device):
        ticket = queue.submit([b"abc"], [1, 2])
        device.answer_all(claimed)
        done = queue.finish(ticket, timeout=0)
        assert (done.written, done.data) == (3, b"abc")


def test_memory_of_an_answer_is_zeroed_before_the_device_gets_it() -> None:
    with rig() as (queue, device):
        first = queue.submit([b"secret"], [6])
        device.answer_all()
        assert queue.finish(first, timeout=0).data == b"secret"
        second = queue.submit([b""], [6])
        device.answer_all(6)
        assert queue.finish(second, timeout=0).data == bytes(6)


def test_a_queue_that_does_not_fit_takes_no_memory() -> None:
    arena = Arena(1 << 16)
    with pytest.raises(MemoryError):
        Queue(0, 4096, arena, Nobody(), 0)
    assert arena.free == 1 << 16
    arena.close()


def test_features_beyond_those_of_a_device_type_can_not_be_asked_for() -> None:
    wrong = pytest.raises(LocalProtocolError, match="has bits that are not of a device type: 0x400000000")
    with wrong, joined(Answering(echo), features=1 << 34 | 1 << 9):
        pass


def test_features_of_the_device_type_are_acknowledged_if_they_are_offered() -> None:
    device = Answering(echo)
    device.features = 1 << 9 | 1 << 5
    with joined(device, features=1 << 9 | 1 << 12) as both:
        assert {name for name in both.frontend.features if name.startswith("BIT_")} == {"BIT_9"}
        assert isinstance(both.frontend, Frontend)


def test_a_queue_that_can_not_be_made_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(Answering(echo)) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        free, made = queue._memory.free, os.eventfd
        answers = iter([made, made])

        def eventfd(value: int, flags: int) -> int:
            if (make := next(answers, None)) is None:
                raise OSError(24, "Too many open files")
            return make(value, flags)

        with monkeypatch.context() as patched:
            patched.setattr(os, "eventfd", eventfd)
            with pytest.raises(OSError, match="Too many"):
                both.frontend.start_queue(1, size=16)
        assert queue._memory.free == free


@pytest.mark.parametrize(("readable", "writable"), [(["no bytes"], []), ([b"x"], [-1])])
def test_a_request_that_makes_no_sense_takes_no_memory(readable: list[bytes], writable: list[int]) -> None:
    with queue_to(echo) as queue:
        free = queue._memory.free
        with pytest.raises((TypeError, ValueError)):
            queue.submit(readable, writable)
        assert queue._memory.free == free
        assert queue.in_flight == 0


def test_a_front_end_that_is_closed_says_so() -> None:
    with joined(Answering(echo)) as (frontend, _):
        frontend.share_memory(1 << 16)
        frontend.close()
        calls: dict[str, Callable[[], object]] = {
            "share_memory": lambda: frontend.share_memory(1),
            "start_queue": lambda: frontend.start_queue(0, size=16),
            "add_memory": lambda: frontend.add_memory(4096),
        }
        for name, call in calls.items():
            with pytest.raises(Disconnected, match=f"^{name}: this front-end is closed$"):
                call()
