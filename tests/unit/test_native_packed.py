"""What the compiled device half of a packed queue has beyond the pure one: event suppression, batches, hostile memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.packed_event_driver import DESC, DISABLE, named, passed
from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, WRITE, CompiledPackedRig, PackedRig
from vhostuser import _native
from vhostuser.errors import QueueBroken
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.memory.mapping import address_of, map_file
from vhostuser.testing import DEADLINE, sparse_file, wait_until
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import FIRST_BASE
from vhostuser.virtqueue import new_device_queue, part_sizes

if TYPE_CHECKING:
    from vhostuser._native.walk import DeviceRing

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here, or it is not wanted")

PACKED, EVENT_IDX = 1 << Feature.RING_PACKED, 1 << Feature.RING_EVENT_IDX
ENTRIES = 7
ENABLE = 0


class Guest(PackedRig):
    """A ring of the compiled half, as the back-end makes it, and its event suppression areas."""

    device: DeviceRing

    def __init__(self, features: int = 0, *, start: int = 0, size: int = ENTRIES) -> None:
        self.features = PACKED | features
        super().__init__(size, start=start)
        self.driver_event, self.device_event = self.available.cast("H"), self.used.cast("H")

    def new_device(self, base: int, *, indirect: bool) -> DeviceRing:
        memory = GuestMemory([GuestRegion(BUFFERS, 0, self.buffers, ())])
        ring = new_device_queue(self.size, *self.parts, memory, self.features, base=base)
        assert isinstance(ring, _native.packed.PackedRing)
        return ring

    def want(self, position: int) -> None:
        """Name the descriptor whose use is to be notified."""
        self.driver_event[0], self.driver_event[1] = named(position % self.last, self.size), DESC

    def offer(self, count: int = 1) -> None:
        for _ in range(count):
            self.give((BUFFERS, 1, 0))

    def serve(self, count: int) -> bool:
        """Offer, take, give back and publish; whether the driver is to be notified."""
        self.offer(count)
        for chain in self.device.pop_many(count):
            self.device.push(chain)
        return self.device.publish()


# Notifications to the driver ("Event Suppression Structure Format")


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_driver_that_wants_no_notification_gets_none(features: int) -> None:
    guest = Guest(features)
    assert guest.serve(1)
    guest.driver_event[1] = DISABLE
    assert [guest.serve(2) for _ in range(5)] == [False] * 5
    guest.driver_event[1] = ENABLE
    assert not guest.device.publish(), "nothing is new"
    assert guest.serve(1)


def test_a_descriptor_is_named_under_event_idx_only() -> None:
    guest = Guest()
    guest.want(100)
    assert [guest.serve(1) for _ in range(3)] == [True] * 3


def test_the_first_publication_of_a_ring_is_always_heard_where_a_descriptor_is_named() -> None:
    """What the device before this one left unsaid nobody knows."""
    guest = Guest(EVENT_IDX)
    guest.want(5)
    assert guest.serve(1)
    assert not guest.serve(1)
    guest.device = guest.new_device(guest.device.base, indirect=True)
    assert guest.serve(1)
    assert not guest.serve(1)


@pytest.mark.parametrize("start", range(2 * ENTRIES))
@pytest.mark.parametrize("count", [1, 2, ENTRIES])
def test_an_event_is_heard_when_its_descriptor_is_passed_and_only_then(start: int, count: int) -> None:
    """Also where the ring ends, and its wrap counters change."""
    for distance in range(2 * ENTRIES):
        guest = Guest(EVENT_IDX, start=(start - 1) % (2 * ENTRIES))
        guest.serve(1)
        guest.want(start + distance)
        assert guest.serve(count) == (distance < count), distance
        assert passed(guest.driver_event[0], (start + count) % guest.last, start, ENTRIES) == (distance < count)


def test_an_event_inside_a_chain_is_heard() -> None:
    """Linux names the descriptor behind three quarters of what is in progress, wherever chains begin."""
    guest = Guest(EVENT_IDX)
    guest.serve(1)
    guest.want(2)
    guest.give((BUFFERS, 1, 0), (BUFFERS, 1, 0), (BUFFERS, 1, 0))
    chain = guest.device.pop()
    assert chain is not None
    guest.device.push(chain)
    assert guest.device.publish()


@pytest.mark.parametrize("event", [ENTRIES, 0x7FFF, 0x8000 | ENTRIES, 0xFFFF])
def test_q27_a_descriptor_that_is_none_is_as_good_as_every_one(event: int) -> None:
    guest = Guest(EVENT_IDX)
    guest.driver_event[0], guest.driver_event[1] = event, DESC
    assert [guest.serve(2) for _ in range(9)] == [True] * 9


@pytest.mark.parametrize("features", [0, EVENT_IDX])
@pytest.mark.parametrize("garbage", [3, 7, 0xFFFF, 0x1234])
def test_q27_garbage_in_the_event_areas_changes_nothing_else(features: int, garbage: int) -> None:
    guest = Guest(features)
    for _ in range(20):
        guest.driver_event[0] = guest.driver_event[1] = garbage
        guest.device_event[0] = guest.device_event[1] = garbage
        guest.serve(5)
    assert guest.device.base == guest.base_at(100 % (2 * ENTRIES))
    guest.driver_event[1] = garbage & ~3
    assert guest.serve(1), "reserved bits mean nothing"


# Kicks of the driver


@pytest.mark.parametrize("start", [0, 6, 7, 13])
def test_a_device_that_finds_nothing_names_the_next_descriptor(start: int) -> None:
    guest = Guest(EVENT_IDX, start=start)
    assert guest.device_event[1] == ENABLE
    assert guest.device.pop() is None
    assert guest.device_event.tolist() == [named(start, ENTRIES), DESC]
    guest.offer(3)
    assert len(guest.device.pop_many(8)) == 3
    assert guest.device_event.tolist() == [named(start, ENTRIES), DESC], "a device at work needs no kick"
    assert guest.device.pop() is None
    assert guest.device_event.tolist() == [named((start + 3) % 14, ENTRIES), DESC]


@pytest.mark.parametrize(("features", "wanted"), [(0, ENABLE), (EVENT_IDX, DESC)])
def test_kicks_are_disabled_and_enabled(features: int, wanted: int) -> None:
    guest = Guest(features)
    guest.device.disable_kicks()
    assert guest.device_event[1] == DISABLE
    assert guest.device.pop() is None
    assert guest.device_event[1] == DISABLE
    assert not guest.device.enable_kicks()
    assert guest.device_event.tolist() == [named(0, ENTRIES) if features else 0, wanted]


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_enabling_kicks_tells_of_what_came_before(features: int) -> None:
    guest = Guest(features)
    guest.device.disable_kicks()
    guest.offer()
    assert guest.device.enable_kicks()


# Many at once


def test_many_are_taken_up_to_the_limit() -> None:
    guest = Guest()
    guest.offer(6)
    assert guest.device.pop_many(0) == []
    assert [len(guest.device.pop_many(4)) for _ in range(3)] == [4, 2, 0]


def test_many_come_before_a_broken_one_which_then_breaks() -> None:
    guest = Guest()
    guest.offer(2)
    guest.give((1 << 40, 1, 0))
    assert len(guest.device.pop_many(4)) == 2
    for _ in range(2):
        with pytest.raises(QueueBroken, match="points outside guest memory"):
            guest.device.pop_many(4)


def test_what_is_unusual_is_taken_among_many() -> None:
    """A buffer over more regions than the compiled half has room for: the pure one takes it."""
    guest = Guest()
    regions = [GuestRegion(BUFFERS + at, 0, memoryview(bytearray([at])), ()) for at in range(100)]
    guest.device = new_device_queue(ENTRIES, *guest.parts, GuestMemory(regions), PACKED, base=FIRST_BASE)  # type: ignore[assignment]
    guest.give((BUFFERS, 1, 0), (BUFFERS, 1, 0))
    guest.give((BUFFERS, 100, 0))
    guest.offer()
    chains = guest.device.pop_many(8)
    assert [(len(chain.readable), chain.entries) for chain in chains] == [(2, 2), (100, 1), (1, 1)]
    assert guest.device.base == (0x8000 << 16 | named(4, ENTRIES))


def test_an_indirect_table_is_taken_without_the_pure_half() -> None:
    rig = CompiledPackedRig(ENTRIES)
    table = BUFFERS + 64
    rig.give((table, rig.raw_table(table, (BUFFERS, 3, 0, NEXT), (BUFFERS + 8, 5, 0, WRITE)), INDIRECT))
    chain = rig.device.pop()
    assert chain is not None
    assert ([view.nbytes for view in chain.readable], [view.nbytes for view in chain.writable]) == ([3], [5])
    assert rig.steps == 0


def test_a_device_that_gives_back_more_than_it_took_harms_nobody() -> None:
    guest = Guest()
    for entries in (1, 7, 65535):
        for _ in range(3 * ENTRIES):
            guest.device.push(DescriptorChain(0, [], [], entries))
        guest.device.publish()


def test_a_chain_that_lost_a_field_is_an_error() -> None:
    guest = Guest()
    guest.offer()
    chain = guest.device.pop()
    assert chain is not None
    del chain.written
    with pytest.raises(AttributeError):
        guest.device.push(chain)
    assert not guest.device.publish()


# What it is made of


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_that_is_too_short_is_refused(part: int) -> None:
    guest = Guest()
    descriptors, area, ours = (each[: each.nbytes - (at == part)] for at, each in enumerate(guest.parts))
    with pytest.raises(ValueError, match="a part of the ring has"):
        new_device_queue(ENTRIES, descriptors, area, ours, GuestMemory(), PACKED, base=FIRST_BASE)


def test_what_is_no_ring_is_refused() -> None:
    guest, table = Guest(), _native.walk.RegionTable([])
    for size in (0, (1 << 15) + 1, 1 << 16):
        with pytest.raises(ValueError, match="a queue of"):
            _native.packed.PackedRing(size, *guest.parts, guest, table)
    for part in (0, 2):
        descriptors, area, ours = (each.toreadonly() if at == part else each for at, each in enumerate(guest.parts))
        with pytest.raises(ValueError, match="read-only"):
            _native.packed.PackedRing(ENTRIES, descriptors, area, ours, guest, table)
    with pytest.raises(QueueBroken, match="base 0x80088008 is none"):
        _native.packed.PackedRing(ENTRIES, *guest.parts, guest, table, base=0x80088008)
    with pytest.raises(TypeError):
        _native.packed.PackedRing(ENTRIES, *guest.parts, guest, None)  # type: ignore[arg-type]


def test_parts_may_lie_at_odd_addresses() -> None:
    """A region may be mapped from any offset of its file."""
    guest = Guest(EVENT_IDX)
    odd = [memoryview(bytearray(part.nbytes + 1))[1:] for part in guest.parts]
    guest.give((BUFFERS, 8, WRITE))
    for new, old in zip(odd, guest.parts, strict=True):
        new[:] = old
    assert address_of(odd[0]) % 2 == 1
    memory = GuestMemory([GuestRegion(BUFFERS, 0, guest.buffers, ())])
    ring = new_device_queue(ENTRIES, odd[0], odd[1], odd[2], memory, guest.features, base=FIRST_BASE)
    chain = ring.pop()
    assert chain is not None
    assert chain.write(b"answer") == 6
    ring.push(chain)
    assert ring.publish()
    assert bytes(odd[0][8:16]) == bytes([6, 0, 0, 0, 0, 0, WRITE | 0x80, 0x80])


# A driver that changes its mind while the device looks

FLIP = """
import mmap, os, random, sys
random.seed(1)
memory = mmap.mmap(int(sys.argv[1]), 1 << 16)
words, entries = memoryview(memory).cast("Q"), 13
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        index = random.randrange(entries)
        words[2 * index] = random.choice([0x2000, 0x3000, 0xFFF0, 0, 1 << 40])
        name = random.randrange(entries) if random.random() < 0.9 else entries
        flags = random.choice([0, 1, 1, 2, 3, 4]) | random.choice([0, 0x80, 0x8000, 0x8080])
        words[2 * index + 1] = random.choice([0, 8, 16, 64, 0xFFFFFFF0]) | name << 32 | flags << 48
        words[0x2000 // 8 + 2 * index + 1] = random.choice([8, 16]) | random.choice([0, 1, 2]) << 48
        words[0x2000 // 8 + 2 * index] = random.choice([0x3000, 0x4000])
        words[0x1000 // 8] = random.choice([0, 1, 2, 2, 3]) << 16 | random.randrange(1 << 16)
"""


@contextlib.contextmanager
def flipping(fd: int) -> Iterator[None]:
    """In the block, another process writes nonsense and sense into the ring in the file of `fd`, as fast as it can."""
    process = subprocess.Popen([sys.executable, "-c", FLIP, str(fd), str(os.getpid())], pass_fds=[fd])
    try:
        yield
        assert process.poll() is None, "the flipping process has ended early"
    finally:
        process.kill()
        process.wait(DEADLINE)


@pytest.mark.parametrize("event_idx", [0, EVENT_IDX])
def test_q23_a_driver_that_flips_fields_of_live_descriptors_harms_nobody(event_idx: int) -> None:
    """Chains are bounded and lie in guest memory, whatever was there a moment before and after."""
    entries, taken, broken = 13, 0, 0
    features = PACKED | event_idx | 1 << Feature.RING_INDIRECT_DESC
    with sparse_file(1 << 16) as file, flipping(file.fileno()):
        view = map_file(file.fileno(), 1 << 16, 0)
        low, high = address_of(view), address_of(view) + view.nbytes
        memory = GuestMemory([GuestRegion(0, 0, view[:0x4000], ()), GuestRegion(0x4000, 0, view[0x4000:], ())])
        spots = zip((0, 0x1000, 0x1800), part_sizes(entries, features), strict=True)
        descriptors, area, ours = (view[at : at + size] for at, size in spots)
        wait_until(lambda: bytes(view[0x1000:0x1008]) != bytes(8), "the flipping has begun")
        ends = time.monotonic() + 1
        while time.monotonic() < ends or not taken or not broken:
            ring = new_device_queue(entries, descriptors, area, ours, memory, features, base=FIRST_BASE)
            with contextlib.suppress(QueueBroken):
                for _ in range(200):
                    if chain := ring.pop():
                        taken += 1
                        pieces = [*chain.readable, *chain.writable]
                        assert len(pieces) <= 2 * entries
                        assert all(low <= address_of(piece) <= high - piece.nbytes for piece in pieces)
                        chain.write(chain.read(64))
                        ring.push(chain)
                        ring.publish()
                continue
            broken += 1
