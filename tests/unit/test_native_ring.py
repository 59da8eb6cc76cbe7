"""What the compiled device half of a split queue has beyond the pure one: suppression, EVENT_IDX, batches, its own views."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from tests.event_driver import need_event
from tests.memory_map import areas
from tests.virtio_rig import DESCRIPTOR, INDIRECT, NEXT, WRITE
from vhostuser import _native
from vhostuser.errors import QueueBroken
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.memory.mapping import address_of, map_file
from vhostuser.testing import DEADLINE, sparse_file, wait_until
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.numbers import Feature
from vhostuser.virtqueue import new_device_queue, part_sizes, queue_features

if TYPE_CHECKING:
    from vhostuser._native.ring import SplitRing

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here, or it is not wanted")

EVENT_IDX = 1 << Feature.RING_EVENT_IDX
ENTRIES = 8


def ring_over(
    parts: Sequence[memoryview], memory: GuestMemory, features: int = 0, *, base: int = 0, size: int = ENTRIES
) -> SplitRing:
    """A ring of the compiled half, as the back-end makes it."""
    descriptors, available, used = parts
    ring = new_device_queue(size, descriptors, available, used, memory, features, base=base)
    assert isinstance(ring, _native.ring.SplitRing)
    return ring


class Guest:
    """A ring of 8 entries over private memory at guest address 0, its driver's fields by name."""

    def __init__(self, features: int = 0, *, base: int = 0, size: int = ENTRIES) -> None:
        self.size, self.features = size, features
        self.parts = [memoryview(bytearray(part)) for part in part_sizes(size, features)]
        self.descriptors = self.parts[0]
        self.available, self.used = self.parts[1].cast("H"), self.parts[2][: self.parts[2].nbytes].cast("H")
        self.buffers = memoryview(bytearray(4096))
        self.memory = GuestMemory([GuestRegion(0, 0, self.buffers, ())])
        for index in range(size):
            self.describe(index, (16 * index, 16, WRITE, 0))
            self.available[2 + index] = index
        self.available[1] = self.used[1] = base
        self.ring = self.new_ring(base)

    def new_ring(self, base: int) -> SplitRing:
        return ring_over(self.parts, self.memory, self.features, base=base, size=self.size)

    def describe(self, index: int, entry: tuple[int, int, int, int]) -> None:
        DESCRIPTOR.pack_into(self.descriptors, 16 * index, *entry)

    def offer(self, count: int = 1) -> None:
        self.available[1] = (self.available[1] + count) & 0xFFFF

    @property
    def avail_event(self) -> int:
        return self.used[2 + 4 * self.size]

    def want(self, index: int) -> None:
        """Set used_event: notify when that entry is used."""
        self.available[2 + self.size] = index & 0xFFFF

    def serve(self, count: int) -> bool:
        """Offer, take, give back and publish; whether the driver is to be notified."""
        self.offer(count)
        for chain in self.ring.pop_many(count):
            self.ring.push(chain)
        return self.ring.publish()


# Notifications to the driver ("Used Buffer Notification Suppression")


def test_flags_say_whether_the_driver_wants_notifications() -> None:
    guest = Guest()
    assert guest.serve(1)
    guest.available[0] = 1
    assert not guest.serve(3)
    assert guest.used[1] == 4, "shown all the same"
    guest.available[0] = 0xFFFE
    assert guest.serve(1)
    assert not guest.ring.publish(), "nothing is new"


def test_flags_mean_nothing_under_event_idx() -> None:
    guest = Guest(EVENT_IDX)
    guest.serve(1)
    guest.available[0] = 1
    guest.want(1)
    assert guest.serve(1)
    guest.available[0] = 0
    assert not guest.serve(1)


def test_used_event_means_nothing_without_event_idx() -> None:
    guest = Guest()
    assert [guest.serve(1) for _ in range(3)] == [True] * 3


def test_the_first_publication_of_a_ring_is_always_heard() -> None:
    """What the device before this one left unsaid nobody knows."""
    guest = Guest(EVENT_IDX)
    guest.want(100)
    assert guest.serve(1)
    assert not guest.serve(1)
    guest.ring = guest.new_ring(guest.ring.base)
    assert guest.serve(1)


@pytest.mark.parametrize("start", [0, 1, 0x7FFE, 0xFFF0, 0xFFFE, 0xFFFF])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_an_event_is_heard_when_it_is_passed_and_only_then(start: int, count: int) -> None:
    """Also where the indices wrap."""
    for distance in range(-12, 12):
        guest = Guest(EVENT_IDX, base=(start - 1) & 0xFFFF)
        guest.serve(1)
        guest.want(start + distance)
        assert guest.serve(count) == (0 <= distance < count), distance
        assert need_event((start + distance) & 0xFFFF, (start + count) & 0xFFFF, start) == (0 <= distance < count)


@pytest.mark.parametrize("garbage", [0, 1, 0x8000, 0xFFFF, 0x1234])
def test_q27_garbage_in_the_fields_of_suppression_changes_nothing_else(garbage: int) -> None:
    for features in (0, EVENT_IDX):
        guest = Guest(features)
        for _ in range(20):
            guest.available[0] = garbage
            if features:
                guest.want(garbage)
                guest.used[2 + 4 * ENTRIES] = garbage
            guest.serve(5)
        assert guest.used[1] == guest.ring.base == 100


# Kicks of the driver ("Available Buffer Notification Suppression")


def test_a_device_that_finds_nothing_asks_for_a_kick_at_the_next_request() -> None:
    guest = Guest(EVENT_IDX, base=65534)
    assert guest.ring.pop() is None
    assert guest.avail_event == 65534
    guest.offer(3)
    assert [chain.head for chain in guest.ring.pop_many(8)] == [6, 7, 0]
    assert guest.avail_event == 65534, "a device at work needs none"
    assert guest.ring.pop() is None
    assert guest.avail_event == 1


def test_kicks_are_disabled_and_enabled_by_the_flag_without_event_idx() -> None:
    guest = Guest()
    guest.ring.disable_kicks()
    assert guest.used[0] == 1
    assert guest.ring.pop() is None
    assert guest.used[0] == 1
    assert not guest.ring.enable_kicks()
    assert guest.used[0] == 0


def test_kicks_are_disabled_and_enabled_by_the_event_under_event_idx() -> None:
    guest = Guest(EVENT_IDX)
    guest.serve(2)
    guest.ring.disable_kicks()
    assert guest.ring.pop() is None
    assert (guest.used[0], guest.avail_event) == (0, 0), "no need to say so: the event has passed"
    assert not guest.ring.enable_kicks()
    assert guest.avail_event == 2
    guest.serve(1)
    assert guest.ring.pop() is None
    assert guest.avail_event == 3


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_enabling_kicks_tells_of_what_came_before(features: int) -> None:
    guest = Guest(features)
    guest.ring.disable_kicks()
    guest.offer()
    assert guest.ring.enable_kicks()


# Many at once


def test_many_are_taken_up_to_the_limit() -> None:
    guest = Guest()
    guest.offer(6)
    assert guest.ring.pop_many(0) == []
    assert [len(guest.ring.pop_many(4)) for _ in range(3)] == [4, 2, 0]
    assert guest.ring.base == 6


def test_many_come_before_a_broken_one_which_then_breaks() -> None:
    guest = Guest()
    guest.describe(2, (1 << 40, 1, 0, 0))
    guest.offer(4)
    assert [chain.head for chain in guest.ring.pop_many(4)] == [0, 1]
    for _ in range(2):
        with pytest.raises(QueueBroken, match="points outside guest memory"):
            guest.ring.pop_many(4)
    assert guest.ring.base == 2


def test_a_buffer_over_more_regions_than_there_is_room_for_is_taken_all_the_same() -> None:
    count = 100
    memory = GuestMemory([GuestRegion(at, 0, memoryview(bytearray([at])), ()) for at in range(count)])
    guest = Guest()
    guest.memory = memory
    ring = guest.new_ring(0)
    guest.describe(0, (0, count, 0, 0))
    guest.offer()
    chain = ring.pop()
    assert chain is not None
    assert len(chain.readable) == count
    assert chain.read() == bytes(range(count))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_q17_a_chain_may_be_4_gib_long_and_no_longer(count: int) -> None:
    """Also where all of it is there, several times over."""
    with sparse_file(1 << 30) as file:
        mapped = map_file(file.fileno(), 1 << 30, 0)
    guest = Guest()
    guest.memory = GuestMemory([GuestRegion(0, 0, mapped, ())])
    ring = guest.new_ring(0)
    for index in range(count):
        guest.describe(index, (0, 1 << 30, NEXT if index + 1 < count else 0, index + 1))
    guest.offer()
    if count == 5:
        with pytest.raises(QueueBroken, match=r"longer than 2\^32 bytes"):
            ring.pop()
    else:
        assert (chain := ring.pop()) is not None
        assert chain.readable_size == count << 30


@pytest.mark.parametrize("flags", [0, WRITE, INDIRECT])
def test_m16_a_buffer_or_table_does_not_wrap_around_the_address_space(flags: int) -> None:
    guest = Guest(1 << Feature.RING_INDIRECT_DESC)
    data = memoryview(bytearray(4096))
    DESCRIPTOR.pack_into(data, 4080, 0, 16, NEXT, 1)
    guest.memory = GuestMemory([GuestRegion(0, 0, data, ()), GuestRegion((1 << 64) - 16, 0, data[4080:], ())])
    ring = guest.new_ring(0)
    guest.describe(0, ((1 << 64) - 16, 32, flags, 0))
    guest.offer()
    with pytest.raises(QueueBroken, match="points outside guest memory: no guest memory at 0x10000000000000000"):
        ring.pop()


# What it is made of


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_part_that_is_too_short_is_refused(part: int, features: int) -> None:
    guest = Guest(features)
    parts = list(guest.parts)
    parts[part] = parts[part][:-1]
    with pytest.raises(ValueError, match="a part of the ring has"):
        ring_over(parts, guest.memory, features)


def test_what_is_no_ring_is_refused() -> None:
    guest = Guest()
    table = _native.ring.RegionTable([])
    descriptors, available, used = guest.parts
    for size in (0, 3, 12, (1 << 15) + 1, 1 << 16):
        with pytest.raises(ValueError, match="a queue of"):
            _native.ring.SplitRing(size, descriptors, available, used, guest.memory, table)
    with pytest.raises(ValueError, match="read-only"):
        _native.ring.SplitRing(ENTRIES, descriptors, available, used.toreadonly(), guest.memory, table)
    with pytest.raises(ValueError, match="plain bytes"):
        _native.ring.SplitRing(ENTRIES, descriptors, available, used[::2], guest.memory, table)
    for start in (0, 1, used.nbytes, used.nbytes + 1, 1 << 63):
        with pytest.raises(ValueError, match="sorted"):
            _native.ring.RegionTable([(start, used), (1, used)])
    with pytest.raises(TypeError):
        _native.ring.SplitRing(ENTRIES, descriptors, available, used, guest.memory, None)  # type: ignore[arg-type]


def test_parts_may_lie_at_odd_addresses() -> None:
    """A region may be mapped from any offset of its file."""
    guest = Guest(EVENT_IDX)
    odd = [memoryview(bytearray(part.nbytes + 1))[1:] for part in guest.parts]
    for new, old in zip(odd, guest.parts, strict=True):
        new[:] = old
    assert address_of(odd[1]) % 2 == 1
    ring = ring_over(odd, guest.memory, EVENT_IDX)
    odd[1][2] = 1
    chain = ring.pop()
    assert chain is not None
    chain.write(b"answer")
    ring.push(chain)
    assert ring.publish()
    assert bytes(odd[2][2:12]) == bytes([1, 0, 0, 0, 0, 0, 6, 0, 0, 0])


def test_event_idx_is_offered_by_the_compiled_half_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue_features() == EVENT_IDX
    monkeypatch.setattr(_native, "accelerated", False)
    assert queue_features() == 0


# Views of guest memory


def test_a_view_of_a_chain_is_a_plain_view() -> None:
    guest = Guest()
    guest.describe(0, (3, 5, NEXT, 1))
    guest.offer()
    chain = guest.ring.pop()
    assert chain is not None
    (view,) = chain.readable
    guest.buffers[:10] = b"0123456789"
    assert (bytes(view), view.tolist(), bytes(view[1:3]), bytes(view[::-2])) == (b"34567", [*b"34567"], b"45", b"753")
    assert (view.shape, view.strides, view.contiguous, view.nbytes, len(view)) == ((5,), (1,), True, 5, 5)
    assert view == memoryview(b"34567")
    assert view.cast("B", (5, 1)).shape == (5, 1)
    with pytest.raises(IndexError):
        view[5]
    assert address_of(chain.writable[0]) == address_of(guest.buffers) + 16


def test_a_chain_keeps_its_memory_after_all_else_has_let_go_of_it() -> None:
    """As when a memory table is replaced while a request is in progress."""
    guest = Guest()
    with sparse_file(1 << 16) as file:
        mapped = map_file(file.fileno(), 1 << 16, 0)
    start = address_of(mapped)
    guest.memory = GuestMemory([GuestRegion(0, 0, mapped, ())])
    ring = guest.new_ring(0)
    guest.offer()
    chain = ring.pop()
    del ring, guest, mapped
    gc.collect()
    assert chain is not None
    assert chain.write(b"still there") == 11
    assert [area.inode > 0 for area in areas(start, start + (1 << 16))] == [True]
    del chain
    gc.collect()
    assert not any(area.inode for area in areas(start, start + (1 << 16)))


def test_views_that_are_released_by_others_are_no_concern_of_the_ring() -> None:
    guest = Guest()
    guest.offer()
    for view in (*guest.parts[:2], guest.buffers):
        view.release()
    chain = guest.ring.pop()
    assert chain is not None
    chain.writable[0].release()
    guest.ring.push(chain)
    assert guest.ring.publish()


def test_every_field_of_a_chain_is_set() -> None:
    guest = Guest()
    guest.offer()
    chain = guest.ring.pop()
    assert chain is not None
    plain = DescriptorChain(0, chain.readable, chain.writable)
    assert type(chain) is _native.chain.RingChain
    assert all(getattr(chain, name) == getattr(plain, name) for name in DescriptorChain.__slots__)


# A driver that changes its mind while the device looks

FLIP = """
import mmap, os, random, sys
random.seed(1)
memory = mmap.mmap(int(sys.argv[1]), 1 << 16)
words, entries = memoryview(memory).cast("Q"), 16
indices = memoryview(memory)[0x1000:0x1000 + 4 + 2 * entries].cast("H")
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        index = random.randrange(entries)
        words[2 * index] = random.choice([0x2000, 0x3000, 0xFFF0, 0, 1 << 40])
        following = random.randrange(entries) if random.random() < 0.9 else entries
        flags = random.choice([0, 1, 1, 2, 3, 4])
        words[2 * index + 1] = random.choice([0, 8, 16, 64, 0xFFFFFFF0]) | flags << 32 | following << 48
        words[0x2000 // 8 + 2 * index + 1] = random.choice([8, 16]) | random.choice([0, 1, 2]) << 32 | following << 48
        words[0x2000 // 8 + 2 * index] = random.choice([0x3000, 0x4000])
        indices[2 + index] = random.randrange(entries)
        indices[1] = (indices[1] + random.choice([1, 1, 2, 16, 17])) & 0xFFFF
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


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_q23_a_driver_that_flips_fields_of_live_descriptors_harms_nobody(features: int) -> None:
    """Chains are bounded and lie in guest memory, whatever was there a moment before and after."""
    entries, taken, broken = 16, 0, 0
    features |= 1 << Feature.RING_INDIRECT_DESC
    with sparse_file(1 << 16) as file, flipping(file.fileno()):
        view = map_file(file.fileno(), 1 << 16, 0)
        low, high = address_of(view), address_of(view) + view.nbytes
        memory = GuestMemory([GuestRegion(0, 0, view[:0x4000], ()), GuestRegion(0x4000, 0, view[0x4000:], ())])
        parts = [view[at : at + size] for at, size in zip((0, 0x1000, 0x1800), part_sizes(entries, features), strict=True)]
        wait_until(lambda: bytes(view[0x1002:0x1004]) != bytes(2), "the flipping has begun")
        ends = time.monotonic() + 1
        while time.monotonic() < ends or not taken or not broken:
            ring = ring_over(parts, memory, features, base=int.from_bytes(parts[1][2:4], "little"), size=entries)
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
