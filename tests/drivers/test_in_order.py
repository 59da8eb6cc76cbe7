"""Queues under IN_ORDER whose device writes one used entry for a batch, in both formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostuser import QueueBroken
from vhostuser.memory.arena import Arena
from vhostuser.queue import Queue
from vhostuser.virtio.formats import ring_format
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import used_flags

from .test_queue import Nobody

SIZE = 8
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Batching:
    """A device that writes its own used entries, for queues whose requests take two descriptors each."""

    def __init__(self, queue: Queue, arena: Arena, *, packed: bool) -> None:
        self.packed, self.at = packed, 0
        sizes = ring_format(packed << Feature.RING_PACKED).sizes(SIZE)
        start, end = (queue.addresses.descriptor, sizes[0]) if packed else (queue.addresses.used, sizes[2])
        self.ring = arena.view[start : start + end]

    def name(self, number: int) -> int:
        """What names the request of that number, if none came back before."""
        return number if self.packed else 2 * number % SIZE

    def give_back(self, name: int, count: int, written: int) -> None:
        """End a batch of so many with the request of that name."""
        words = (name, written) if not self.packed else (written, name | used_flags(self.at, SIZE) << 16)
        slot = 16 * (self.at % SIZE) + 8 if self.packed else 4 + 8 * (self.at % SIZE)
        self.ring[slot : slot + 8] = b"".join(word.to_bytes(4, "little") for word in words)
        self.at += 2 * count if self.packed else count
        if self.packed:
            self.at %= 2 * SIZE
        else:
            self.ring[2:4] = self.at.to_bytes(2, "little")


@contextmanager
def rig(packed: bool) -> Iterator[tuple[Queue, Batching, Arena]]:
    arena = Arena(1 << 16)
    features = 1 << Feature.IN_ORDER | packed << Feature.RING_PACKED
    queue = Queue(0, SIZE, arena, Nobody(), features)
    try:
        yield queue, Batching(queue, arena, packed=packed), arena
    finally:
        queue.close()
        assert arena.free == 1 << 16
        arena.close()


@formats
def test_all_requests_of_a_batch_are_completed_and_may_be_asked_again(packed: bool) -> None:
    with rig(packed) as (queue, device, _):
        for _ in range(5):
            tickets = [queue.submit([b"ask"], [4]) for _ in range(3)]
            name = list(queue._flights)[-1]
            assert not queue._collect()
            device.give_back(name, 3, written=2)
            done = queue.completions(0)
            assert [(each.ticket, each.written) for each in done] == [(tickets[0], 4), (tickets[1], 4), (tickets[2], 2)]
            assert queue.in_flight == 0


@formats
@pytest.mark.parametrize("name", [5, 7, 0xFFFF])
def test_a_batch_that_ends_with_what_the_device_does_not_have_breaks_the_queue(packed: bool, name: int) -> None:
    with rig(packed) as (queue, device, _):
        for _ in range(2):
            queue.submit([b"x"], [1])
        device.give_back(name, 2, written=0)
        for _ in range(2):
            with pytest.raises(QueueBroken, match=f"gave back chain {name}, which it does not have"):
                queue.completions(0)
        assert queue.in_flight == 2


@formats
def test_what_a_device_says_it_wrote_is_no_more_than_it_was_given(packed: bool) -> None:
    with rig(packed) as (queue, device, _):
        for _ in range(2):
            queue.submit([b"x"], [4])
        device.give_back(device.name(1), 2, written=0xFFFFFFFF)
        assert [each.written for each in queue.completions(0)] == [4, 4]


@formats
def test_a_ring_that_begins_anew_is_in_order_as_well(packed: bool) -> None:
    with rig(packed) as (queue, device, _):
        tickets = [queue.submit([b"x"], [4]) for _ in range(3)]
        device.give_back(device.name(0), 1, written=1)
        queue.settle()
        assert [each.ticket for each in queue.completions(0)] == tickets[:1]
        queue.renew()
        device.at = 0
        device.give_back(list(queue._flights)[1], 2, written=3)
        assert [(each.ticket, each.written) for each in queue.completions(0)] == [(tickets[1], 4), (tickets[2], 3)]
