"""What a driver leaves in a ring of a real back-end: it is served, or its queue breaks alone and is revived."""

from __future__ import annotations

import os

import pytest

from tests.virtio_rig import AVAIL, BUFFERS, INDIRECT, NEXT, USED, WRITE
from tests.wire.devices import Scripted, echo
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import VringAddr

from .rig import ANSWER, KINDS, Connected, ConnectedPacked, ConnectedSplit, backend_of, connected, echoes

TABLE = BUFFERS + 0x100
SPLITS = [name for name in KINDS if "split" in name]
split_only = pytest.mark.parametrize("rig", SPLITS, indirect=True)
packed_only = pytest.mark.parametrize("rig", ["packed"], indirect=True)


def breaks(rig: Connected) -> None:
    """The queue breaks, once, and shows the driver nothing; another one works, and so does a new ring in its place."""
    other = rig.another(index=1, size=8)
    seen, backend = rig.given_back(), backend_of(rig)
    rig.broken()
    rig.kicked()
    echoes(other)
    assert rig.given_back() == seen
    with pytest.raises(BlockingIOError):
        os.eventfd_read(rig.err.fileno())
    assert backend.counters.broken == 1
    rig.stop()
    echoes(again := rig.another(size=8))
    again.reset()
    echoes(rig.another(size=8))
    assert backend.counters.broken == 1
    other.close()


# Loops, indices and heads


@split_only
@pytest.mark.parametrize("size", [1, 8, 256])
@pytest.mark.parametrize("loop", ["self", "pair", "all"])
def test_q01_a_loop_breaks(rig: Connected, size: int, loop: str) -> None:
    rig = rig.another(size=size)
    for index in range(size):
        rig.describe(index, flags=NEXT, next={"self": index, "pair": (index ^ 1) % size, "all": (index + 1) % size}[loop])
    assert isinstance(rig, ConnectedSplit)
    rig.offer(0)
    breaks(rig)


@packed_only
@pytest.mark.parametrize("size", [1, 3, 256])
def test_q01_a_chain_round_the_whole_ring_breaks(rig: Connected, size: int) -> None:
    rig = rig.another(size=size)
    for index in range(size):
        rig.describe(index, flags=NEXT)
    breaks(rig)


@split_only
def test_q01_a_loop_in_an_indirect_table_breaks(rig: Connected) -> None:
    rig.give((TABLE, rig.raw_table(TABLE, (BUFFERS, 1, NEXT, 0)), INDIRECT))
    breaks(rig)


@pytest.mark.parametrize("size", [1, 2, 8, 256])
def test_q02_a_chain_of_the_whole_queue_is_taken(rig: Connected, size: int) -> None:
    rig = rig.another(size=size)
    for _ in range(3):
        assert rig.ask(*[(BUFFERS, 1, 0)] * (size - 1), (ANSWER, 512, WRITE)) == size - 1


@split_only
@pytest.mark.parametrize("following", [8, 9, 65535])
def test_q03_a_chain_that_continues_outside_the_table_breaks(rig: Connected, following: int) -> None:
    assert isinstance(rig, ConnectedSplit)
    rig.describe(0, flags=NEXT, next=following)
    rig.offer(0)
    breaks(rig)


@split_only
@pytest.mark.parametrize("head", [8, 9, 65535])
def test_q04_a_head_outside_the_table_breaks(rig: Connected, head: int) -> None:
    assert isinstance(rig, ConnectedSplit)
    rig.offer(head)
    breaks(rig)


@split_only
@pytest.mark.parametrize("step", [9, 1000, -1, -8])
@pytest.mark.parametrize("start", [0, 65533])
def test_q05_an_available_index_that_jumps_or_goes_back_breaks(rig: Connected, start: int, step: int) -> None:
    rig = rig.another(start=start)
    rig.available[2:4] = ((start + step) & 0xFFFF).to_bytes(2, "little")
    breaks(rig)


@pytest.mark.parametrize("back", [6, 1, 0])
def test_q05_indices_wrap(rig: Connected, back: int) -> None:
    rig = rig.another(start=(rig.last - back) % rig.last)
    for _ in range(10):
        assert rig.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) == 4
    taken = 10 if isinstance(rig, ConnectedSplit) else 20
    assert rig.stop() == rig.base_at((rig.last - back + taken) % rig.last)


def test_q08_misaligned_rings_are_refused(rig: Connected) -> None:
    rig.stop()
    places, alignments = (0, 0x2000, 0x1000), (4, 4, 4) if isinstance(rig, ConnectedPacked) else (16, 4, 2)
    for part, alignment in enumerate(alignments):
        for off in {1, alignment // 2, alignment - 1}:
            descriptors, used, available = (place + off * (at == part) for at, place in enumerate(places))
            rig.raw.refused(Q.SET_VRING_ADDR, VringAddr(rig.index, 0, descriptors, used, available, 0))
    echoes(rig.another())


# Indirect tables


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_q10_an_indirect_table_that_was_not_negotiated_breaks(kind: tuple[type[Connected], bool]) -> None:
    with connected(Scripted(), kind, indirect=False) as rig:
        rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, 0)), INDIRECT))
        breaks(rig)


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT])
def test_q11_an_indirect_table_inside_another_breaks(rig: Connected, flags: int) -> None:
    rig.give((TABLE, rig.table(TABLE, (TABLE, 16, flags)), INDIRECT))
    breaks(rig)


def test_q12_indirect_with_next_breaks(rig: Connected) -> None:
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, 0)), INDIRECT), (BUFFERS, 1, 0))
    breaks(rig)


@split_only
@pytest.mark.parametrize("direct", [0, 1, 3])
def test_q12_direct_descriptors_may_end_in_one_indirect_table(rig: Connected, direct: int) -> None:
    size = rig.table(TABLE, (BUFFERS, 3, 0), (ANSWER, 64, WRITE))
    for _ in range(5):
        assert rig.ask(*[(BUFFERS, 2, 0)] * direct, (TABLE, size, INDIRECT)) == 2 * direct + 3


@packed_only
def test_q12_an_indirect_table_is_all_of_a_packed_chain(rig: Connected) -> None:
    size = rig.table(TABLE, (BUFFERS, 3, 0), (ANSWER, 64, WRITE))
    for _ in range(20):
        assert rig.ask((TABLE, size, INDIRECT)) == 3
    rig.give((BUFFERS, 1, 0), (TABLE, size, INDIRECT))
    breaks(rig)


def test_q13_the_write_flag_of_an_indirect_descriptor_is_ignored(rig: Connected) -> None:
    assert rig.ask((TABLE, rig.table(TABLE, (BUFFERS, 5, 0), (ANSWER, 5, WRITE)), INDIRECT | WRITE)) == 5


@pytest.mark.parametrize("len", [0, 8, 17, 9 * 16, (1 << 32) - 16])
def test_q14_an_indirect_table_of_an_impossible_size_breaks(rig: Connected, len: int) -> None:
    rig.give((BUFFERS, len, INDIRECT))
    breaks(rig)


@pytest.mark.parametrize("addr", [0, BUFFERS + (1 << 16) - 8, (1 << 64) - 16])
def test_q14_an_indirect_table_outside_memory_breaks(rig: Connected, addr: int) -> None:
    rig.give((addr, 16, INDIRECT))
    breaks(rig)


def test_q14_a_legal_indirect_table_may_be_as_long_as_the_queue_and_cross_a_border_of_regions(rig: Connected) -> None:
    table = BUFFERS + (1 << 15) - 24
    size = rig.table(table, *[(BUFFERS, 2, 0)] * 7, (ANSWER, 64, WRITE))
    assert rig.ask((table, size, INDIRECT)) == 14


# Lengths and order


@pytest.mark.parametrize("addr", [BUFFERS, 0, (1 << 64) - 1])
def test_q16_empty_buffers_are_skipped_wherever_they_are(rig: Connected, addr: int) -> None:
    assert rig.ask(*[(addr, 0, 0)] * 7, (addr, 0, WRITE)) == 0
    assert rig.ask((addr, 0, 0), (BUFFERS, 3, 0), (addr, 0, 0), (addr, 0, WRITE), (ANSWER, 8, WRITE), (addr, 0, WRITE)) == 3


def test_q17_a_chain_of_more_than_4_gib_breaks(rig: Connected) -> None:
    rig.give((BUFFERS, 2, 0), (BUFFERS, 0xFFFF, 0), (BUFFERS, (1 << 32) - 0x10000, 0))
    breaks(rig)


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("addr", [BUFFERS, (1 << 64) - 1])
def test_q17_a_buffer_of_4_gib_that_is_not_there_breaks(rig: Connected, addr: int, flags: int) -> None:
    rig.give((addr, (1 << 32) - 1, flags))
    breaks(rig)


def test_q18_readable_after_writable_breaks(rig: Connected) -> None:
    rig.give((ANSWER, 1, WRITE), (BUFFERS, 1, 0))
    breaks(rig)


def test_q18_readable_after_writable_in_a_table_breaks(rig: Connected) -> None:
    rig.give((TABLE, rig.table(TABLE, (ANSWER, 1, WRITE), (BUFFERS, 1, 0)), INDIRECT))
    breaks(rig)


def test_q19_a_device_does_not_write_where_it_may_only_read(rig: Connected) -> None:
    rig.buffers[:] = b"\xaa" * rig.buffers.nbytes
    assert rig.ask((BUFFERS, 8, 0)) == 0
    assert rig.ask((ANSWER, 8, WRITE)) == 0
    assert bytes(rig.buffers) == b"\xaa" * rig.buffers.nbytes


def test_q21_a_request_in_pieces_of_a_byte_is_the_same(rig: Connected) -> None:
    rig.buffers[:3], rig.buffers[0x1000:0x1008] = b"abc", bytes(8)
    cut = [(BUFFERS + at, 1, 0) for at in range(3)] + [(ANSWER + 2 * at, 1, WRITE) for at in range(3)]
    assert rig.ask(*cut) == 3
    assert bytes(rig.buffers[0x1000:0x1008]) == b"a\0b\0c\0\0\0"


def test_q23_what_was_read_once_may_change(rig: Connected) -> None:
    """The driver spoils the descriptors and the bytes of a request while the device has it."""
    device, taken = backend_of(rig).device, iter((0, 2))
    assert isinstance(device, Scripted)

    def work(device: Scripted, request: bytes) -> bytes:
        first = next(taken)
        rig.describe(first, addr=1 << 40, len=1 << 31, flags=NEXT | WRITE, next=0xFFFF)
        rig.describe(first + 1, addr=1 << 40, len=1 << 31, flags=0)
        rig.buffers[:4] = b"evil"
        return request + b"!"

    device.work = work
    for _ in range(2):
        rig.buffers[:4] = b"good"
        assert rig.ask((BUFFERS, 4, 0), (ANSWER, 8, WRITE)) == 5
        assert bytes(rig.buffers[0x1000:0x1005]) == b"good!"
    device.work = echo
    echoes(rig.another())


# Packed rings


@packed_only
@pytest.mark.parametrize("start", range(0, 16, 3))
def test_q32_a_chain_goes_across_the_end_of_the_ring(rig: Connected, start: int) -> None:
    rig = rig.another(start=start)
    for _ in range(6):
        assert rig.ask(*[(BUFFERS, 1, 0)] * 4, (ANSWER, 8, WRITE)) == 4


@packed_only
@pytest.mark.parametrize("start", [0, 3, 8, 15])
@pytest.mark.parametrize("flags", [0, AVAIL | USED, "other"])
def test_q32_a_descriptor_of_the_wrong_round_is_no_request(rig: Connected, start: int, flags: int | str) -> None:
    rig = rig.another(start=start)
    mark, wrong = (AVAIL, USED) if start < rig.size else (USED, AVAIL)
    slot = start % rig.size
    rig.descriptors[16 * slot + 14 : 16 * slot + 16] = (wrong if flags == "other" else int(flags)).to_bytes(2, "little")
    rig.kicked()
    other = rig.another(index=1)
    echoes(other)
    other.close()
    assert backend_of(rig).counters.broken == 0
    rig.describe(start, addr=BUFFERS, len=1)
    assert int.from_bytes(rig.descriptors[16 * slot + 14 : 16 * slot + 16], "little") == mark
    assert isinstance(rig, ConnectedPacked)
    rig.driver._entries[0] = 1  # type: ignore[union-attr]
    rig.kicked()
    assert rig.collect() == (0, 0)


@packed_only
@pytest.mark.parametrize("flags", [0, AVAIL | USED, USED])
def test_q32_a_chain_that_continues_at_a_descriptor_that_is_not_available_breaks(rig: Connected, flags: int) -> None:
    rig.descriptors[30:32] = flags.to_bytes(2, "little")
    rig.describe(0, flags=NEXT)
    breaks(rig)


@packed_only
@pytest.mark.parametrize("last", [0, 3])
@pytest.mark.parametrize("buffer_id", [8, 9, 32768, 65535])
def test_q32_a_buffer_id_beyond_the_queue_breaks(rig: Connected, buffer_id: int, last: int) -> None:
    for index in range(last, -1, -1):
        rig.describe(index, flags=NEXT if index < last else 0, next=buffer_id if index == last else 0)
    breaks(rig)


def test_q32_a_chain_that_leaves_its_indirect_table_breaks(rig: Connected) -> None:
    """By NEXT in its last descriptor, which in a table of a packed ring says nothing anywhere else."""
    goes_on = (0, NEXT) if isinstance(rig, ConnectedPacked) else (NEXT, 1)
    rig.give((TABLE, rig.raw_table(TABLE, (BUFFERS, 1, *goes_on)), INDIRECT))
    breaks(rig)
