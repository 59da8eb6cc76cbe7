"""The driver half under IN_ORDER, in both formats, against devices that give back whole batches by one used entry."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import deque
from contextlib import suppress

import pytest

from tests.virtio_rig import BUFFERS, DESCRIPTOR, NEXT, PackedRig, Rig, SplitRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.buffers import Table
from vhostuser.virtio.formats import new_driver
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import used_flags

IN_ORDER = 1 << Feature.IN_ORDER


class InOrder(Rig):
    """A driver that has taken IN_ORDER, and its device as the bytes that one writes."""

    def __init__(self, size: int = 8, *, start: int = 0) -> None:
        super().__init__(size, start=start)
        self.driver = new_driver(IN_ORDER | self.format.is_packed << Feature.RING_PACKED, size, *self.parts)
        self.driver._next = self.driver._seen = start
        self.at = start
        self.given: deque[tuple[int, int]] = deque()
        """Name and descriptors of what the device has."""

    def ask(self, readable: int = 1, *room: int) -> int:
        """Offer a chain of so many buffers to read, and those to write."""
        name = self.driver.add([(BUFFERS, 1)] * readable, [(BUFFERS, size) for size in room])
        self.given.append((name, readable + len(room)))
        return name

    def give_back(self, count: int, written: int = 0) -> None:
        """A batch of the next chains, by one used entry."""
        rows = [self.given.popleft() for _ in range(count)]
        self.write(rows[-1][0], written)
        self.skip(rows)

    @abstractmethod
    def write(self, name: int, written: int) -> None:
        """Write the used entry where the next one belongs."""

    @abstractmethod
    def skip(self, rows: list[tuple[int, int]]) -> None:
        """Go on behind a batch, and show it."""

    def collected(self) -> list[tuple[int, int]]:
        return list(iter(self.driver.collect, None))


class SplitInOrder(InOrder, SplitRig):
    def write(self, name: int, written: int) -> None:
        slot = 4 + 8 * (self.at % self.size)
        self.used[slot : slot + 8] = name.to_bytes(4, "little") + written.to_bytes(4, "little")

    def skip(self, rows: list[tuple[int, int]]) -> None:
        self.show(len(rows))

    def show(self, count: int) -> None:
        self.at = (self.at + count) & 0xFFFF
        self.used[2:4] = self.at.to_bytes(2, "little")


class PackedInOrder(InOrder, PackedRig):
    def write(self, name: int, written: int) -> None:
        slot = 16 * (self.at % self.size)
        flags = used_flags(self.at, self.size).to_bytes(2, "little")
        self.descriptors[slot + 8 : slot + 16] = written.to_bytes(4, "little") + name.to_bytes(2, "little") + flags

    def skip(self, rows: list[tuple[int, int]]) -> None:
        self.at = (self.at + sum(entries for _, entries in rows)) % self.last


Kind = type[InOrder]
both = pytest.mark.parametrize("kind", [SplitInOrder, PackedInOrder], ids=["split", "packed"])


@both
def test_one_used_entry_gives_a_batch_back_and_those_before_the_last_were_used_completely(kind: Kind) -> None:
    rig = kind()
    names = [rig.ask(1, 10), rig.ask(2), rig.ask(1, 20, 5), rig.ask()]
    rig.give_back(3, written=7)
    assert rig.collected() == [(names[0], 10), (names[1], 0), (names[2], 7)]
    rig.give_back(1)
    assert rig.collected() == [(names[3], 0)]


@both
def test_a_batch_that_is_half_collected_takes_what_the_device_adds_to_it(kind: Kind) -> None:
    rig = kind()
    names = [rig.ask(1, 3) for _ in range(4)]
    rig.give_back(2, written=1)
    assert rig.driver.collect() == (names[0], 3)
    rig.give_back(2, written=2)
    assert rig.collected() == [(names[1], 1), (names[2], 3), (names[3], 2)]


@both
def test_a_device_may_write_every_used_entry(kind: Kind) -> None:
    rig = kind()
    names = [rig.ask() for _ in range(4)]
    for _ in names:
        rig.give_back(1)
    assert rig.collected() == [(name, 0) for name in names]


@pytest.mark.parametrize(
    ("kind", "start"), [(SplitInOrder, 0), (SplitInOrder, 65530), (PackedInOrder, 0), (PackedInOrder, 6)]
)
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_any_size_go_round_and_round(kind: Kind, start: int, seed: int) -> None:
    rand = random.Random(seed)
    rig, expected = kind(start=start), deque[tuple[int, int]]()
    for turn in range(400):
        while True:
            room, buffers = rand.randrange(50), rand.randrange(1, 4)
            try:
                expected.append((rig.ask(buffers, room), room))
            except BufferError:
                break
        count, written = rand.randint(1, len(expected)), rand.randrange(50)
        rig.give_back(count, written)
        batch = [expected.popleft() for _ in range(count)]
        assert rig.collected() == [*batch[:-1], (batch[-1][0], written)], turn


@both
def test_our_device_half_writes_every_used_entry(kind: Kind) -> None:
    rig = kind()
    for turn in range(40):
        names = [rig.driver.add([(BUFFERS, 1)], [(BUFFERS, 4)]) for _ in range(1 + turn % 4)]
        for _ in names:
            chain = rig.device.pop()
            assert chain is not None
            chain.write(b"xy")
            rig.device.push(chain)
        rig.device.publish()
        assert rig.collected() == [(name, 2) for name in names]


def test_in_a_split_ring_descriptors_are_used_in_the_order_of_the_table() -> None:
    """By "The Virtqueue Descriptor Table" `next` is x + 1, and 0 for the last descriptor of the table."""
    rig = SplitInOrder(4)
    first = 0
    for length in (3, 2, 4, 1, 3, 3, 2):
        assert rig.ask(length) == first % 4
        for at in range(first, first + length):
            _, _, flags, following = DESCRIPTOR.unpack_from(rig.descriptors, 16 * (at % 4))
            assert (flags & NEXT, following) == ((NEXT, (at + 1) % 4) if at + 1 < first + length else (0, 0))
        first += length
        rig.give_back(1)
        rig.collected()


@both
def test_tables_come_back_in_batches_too(kind: Kind) -> None:
    rig = kind(4)
    for turn in range(10):
        for at in range(4):
            table = Table(BUFFERS + 64 * at, rig.buffers[64 * at : 64 * at + 64])
            rig.given.append((rig.driver.add([(BUFFERS, 3)], [(BUFFERS, 5), (BUFFERS, 6)], table), 1))
        names = [name for name, _ in rig.given]
        rig.give_back(4, written=1)
        assert rig.collected() == [*((name, 11) for name in names[:3]), (names[3], 1)], turn


@both
@pytest.mark.parametrize("name", [5, 8, 65535])
def test_ids_that_the_device_does_not_have_break_the_queue(kind: Kind, name: int) -> None:
    rig = kind()
    rows = [(rig.ask(), 1) for _ in range(3)]
    rig.write(name, 0)
    rig.skip(rows[:1])
    for _ in range(2):
        with pytest.raises(QueueBroken, match=f"gave back chain {name}, which it does not have"):
            rig.driver.collect()


@both
def test_a_chain_that_was_given_back_in_a_batch_is_not_given_back_again(kind: Kind) -> None:
    rig = kind()
    names = [rig.ask() for _ in range(4)]
    rig.give_back(3)
    rig.write(names[0], 0)
    rig.skip([(names[0], 1)])
    assert len([rig.driver.collect() for _ in range(3)]) == 3
    for _ in range(2):
        with pytest.raises(QueueBroken, match=f"gave back chain {names[0]}, which it does not have"):
            rig.driver.collect()


def test_a_batch_is_not_longer_than_the_used_index_says() -> None:
    rig = SplitInOrder()
    names = [rig.ask() for _ in range(4)]
    rig.write(names[2], 0)
    rig.show(2)
    for _ in range(2):
        with pytest.raises(QueueBroken, match=f"chain {names[2]}, which ends a batch of 3, as one of 2"):
            rig.driver.collect()


def test_a_used_index_beyond_all_that_the_device_has_breaks_the_queue() -> None:
    rig = SplitInOrder()
    names = [rig.ask() for _ in range(2)]
    rig.write(names[1], 0)
    rig.show(5)
    assert [rig.driver.collect() for _ in names] == [(name, 0) for name in names]
    for _ in range(2):
        with pytest.raises(QueueBroken, match="which it does not have"):
            rig.driver.collect()


@both
@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_device_writes_no_more_comes_back_than_it_was_given(kind: Kind, seed: int) -> None:
    rand, rig = random.Random(seed), kind(4)
    names = [rig.ask() for _ in range(3)]
    ring = rig.descriptors if rig.format.is_packed else rig.used
    came: list[int] = []
    for _ in range(200):
        at = rand.randrange(ring.nbytes)
        ring[at] = rand.choice([0, 1, 2, 3, 4, 0x80, 0xFF])
        with suppress(QueueBroken):
            while done := rig.driver.collect():
                came.append(done[0])
    assert came == names[: len(came)]
