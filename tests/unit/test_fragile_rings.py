"""Rings in memory that may shrink: what reaches that memory at which step, and how much of it may be copied."""

from __future__ import annotations

import pytest

from tests.virtio_rig import AVAIL, BUFFERS, NEXT, USED, WRITE, FragilePackedRig, PackedRig, SplitRig, ring_parts
from vhostuser.errors import MemoryFault
from vhostuser.memory.fragile import MAX_COPIES, Copies, FragilePackedQueue, FragileQueue, RingPart
from vhostuser.memory.mapping import address_of
from vhostuser.virtio.packed import FIRST_BASE


def test_a_quarter_of_a_gib_may_be_copied_at_a_time() -> None:
    assert MAX_COPIES == Copies().limit == 0x1000_0000


def test_copies_are_counted_to_the_byte() -> None:
    copies = Copies(10)
    copies.take(4)
    copies.take(6)
    for size in (1, 1 << 40):
        with pytest.raises(MemoryFault, match=f"{size:#x} bytes more to copy than the 0xa that may be in use"):
            copies.take(size)
    copies.take(0)
    copies.give(3)
    copies.take(2)
    with pytest.raises(MemoryFault):
        copies.take(2)
    copies.take(1)


def test_a_part_of_a_ring_moves_the_bytes_that_are_named() -> None:
    for start, stop in ((0, 8), (2, 5), (7, 8), (3, 3)):
        home = memoryview(bytearray(b"abcdefgh"))
        part = RingPart(address_of(home), 8, home)
        part.refresh(start, stop)
        assert bytes(part.copy) == bytes(start) + b"abcdefgh"[start:stop] + bytes(8 - stop)
        part.copy[:] = b"12345678"
        part.write_back(start, stop)
        assert bytes(home) == b"abcdefgh"[:start] + b"12345678"[start:stop] + b"abcdefgh"[stop:]
        assert (part.nbytes, part.readonly, part.fragile) == (8, False, False)


def test_a_queue_begins_at_the_first_base() -> None:
    split, packed = SplitRig(4), PackedRig(4)
    assert FragileQueue(4, *ring_parts(split), split).base == 0
    assert FragilePackedQueue(4, *ring_parts(packed), packed).base == FIRST_BASE


def test_a_split_queue_asks_for_kicks_when_it_begins() -> None:
    rig = SplitRig(4)
    rig.used[:4] = b"\x01\x00\x00\x00"
    FragileQueue(4, *ring_parts(rig), rig)
    assert bytes(rig.used[:4]) == bytes(4)


@pytest.mark.parametrize("start", [0, 3, 65534])
def test_used_entries_of_a_split_ring_are_there_once_they_are_published(start: int) -> None:
    rig = SplitRig(4, start=start)
    queue = FragileQueue(4, *ring_parts(rig), rig, base=start)
    for turn in range(6):
        head = rig.give((BUFFERS, 8, WRITE))
        chain = queue.pop()
        assert chain is not None
        chain.write(b"x" * (turn + 1))
        before = bytes(rig.used)
        queue.push(chain)
        assert bytes(rig.used) == before
        assert queue.publish()
        slot = 4 + 8 * ((start + turn) % 4)
        assert list(rig.used[slot : slot + 8].cast("I")) == [head, turn + 1]
        assert int.from_bytes(rig.used[2:4], "little") == (start + turn + 1) & 0xFFFF
        assert not queue.publish()


@pytest.mark.parametrize("start", range(8))
def test_used_descriptors_of_a_packed_ring_are_there_once_they_are_published(start: int) -> None:
    """The length and the id before, the flags last: a whole word each time."""
    rig = FragilePackedRig(4, start=start)
    for turn in range(9):
        place = (start + turn) % 8
        slot = 16 * (place % 4)
        rig.describe(rig.next, len=8, flags=WRITE, next=2)
        rig.next = (rig.next + 1) % 8
        before = bytes(rig.descriptors)
        chain = rig.device.pop()
        assert chain is not None
        chain.write(b"xyz")
        rig.device.push(chain)
        pushed = bytes(rig.descriptors)
        assert pushed[slot + 14 : slot + 16] == before[slot + 14 : slot + 16]
        assert pushed[slot + 8 : slot + 14] == b"\x03\x00\x00\x00\x02\x00"
        rig.device.publish()
        flags = int.from_bytes(rig.descriptors[slot + 14 : slot + 16], "little")
        assert flags == WRITE | (AVAIL | USED if place < 4 else 0)
        others = [at for at in range(64) if not slot + 8 <= at < slot + 16]
        assert all(rig.descriptors[at] == before[at] for at in others)


@pytest.mark.parametrize("start", range(8))
def test_a_batch_of_a_packed_ring_is_shown_as_a_whole(start: int) -> None:
    rig = FragilePackedRig(4, start=start)
    rig.give((BUFFERS, 1, 0), (BUFFERS, 1, 0))
    rig.give((BUFFERS, 1, 0))
    chains = [rig.device.pop(), rig.device.pop()]
    for chain in chains:
        assert chain is not None
        rig.device.push(chain)
    assert rig.device.publish()
    for at in (0, 2):
        slot, place = 16 * ((start + at) % 4), (start + at) % 8
        flags = int.from_bytes(rig.descriptors[slot + 14 : slot + 16], "little")
        assert flags == (AVAIL | USED if place < 4 else 0)
    middle = 16 * ((start + 1) % 4)
    left = int.from_bytes(rig.descriptors[middle + 14 : middle + 16], "little")
    assert left & (AVAIL | USED) == (AVAIL if (start + 1) % 8 < 4 else USED)
    assert not left & NEXT
    assert not rig.device.publish()
