"""The device half of a virtqueue, in both formats: what a driver may leave in it, and what breaks it."""

from __future__ import annotations

import pytest

from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, RIGS, WRITE, Rig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.chain import DescriptorChain

pytestmark = pytest.mark.parametrize("kind", RIGS.values(), ids=RIGS.keys())
Kind = type[Rig]
TABLE = BUFFERS + 0x100


def pop(rig: Rig) -> DescriptorChain:
    chain = rig.device.pop()
    assert chain is not None
    return chain


def broken(rig: Rig, match: str) -> None:
    """The next request breaks the queue, and does so again."""
    base = rig.device.base
    for _ in range(2):
        with pytest.raises(QueueBroken, match=match):
            rig.device.pop()
    assert rig.device.base == base


@pytest.mark.parametrize("size", [1, 2, 8, 256])
def test_q02_a_chain_of_the_whole_queue_is_taken(kind: Kind, size: int) -> None:
    rig = kind(size)
    rig.give(*[(BUFFERS, 1, 0)] * size)
    assert pop(rig).readable_size == size
    assert rig.device.pop() is None


@pytest.mark.parametrize("back", [6, 1, 0])
def test_q05_indices_wrap(kind: Kind, back: int) -> None:
    rig = kind(8, start=kind(8).last - back if back else 0)
    start = rig.next
    for _ in range(20):
        rig.give((BUFFERS, 1, 0))
        rig.device.push(pop(rig))
        assert rig.device.publish()
    assert rig.device.base == rig.base_at((start + 20) % rig.last)


def test_q05_a_full_ring_is_taken(kind: Kind) -> None:
    rig = kind(8)
    given = [rig.give((BUFFERS, 1, 0)) for _ in range(8)]
    assert [pop(rig).head for _ in range(8)] == given == list(range(8))
    assert rig.device.pop() is None


def test_q10_an_indirect_table_that_was_not_negotiated_breaks(kind: Kind) -> None:
    rig = kind(8, indirect=False)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, 0)), INDIRECT))
    broken(rig, "was not negotiated")


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT])
def test_q11_an_indirect_table_inside_another_breaks(kind: Kind, flags: int) -> None:
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, (TABLE, 16, flags)), INDIRECT))
    broken(rig, "inside an indirect table")


def test_q12_indirect_with_next_breaks(kind: Kind) -> None:
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, 0)), INDIRECT), (BUFFERS, 1, 0))
    broken(rig, "with NEXT set")


def test_q12_an_indirect_table_may_be_all_of_a_chain(kind: Kind) -> None:
    rig = kind(2)
    for _ in range(5):
        head = rig.give((TABLE, rig.table(TABLE, (BUFFERS, 3, 0), (BUFFERS, 4, WRITE)), INDIRECT))
        chain = pop(rig)
        assert (chain.head, chain.readable_size, chain.writable_size) == (head, 3, 4)
        rig.device.push(chain)
        rig.device.publish()


def test_q13_the_write_flag_of_an_indirect_descriptor_is_ignored(kind: Kind) -> None:
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 5, 0)), INDIRECT | WRITE))
    assert (chain := pop(rig)).readable_size == 5
    assert chain.writable_size == 0


@pytest.mark.parametrize("len", [0, 8, 17, 9 * 16, (1 << 32) - 16])
def test_q14_an_indirect_table_of_an_impossible_size_breaks(kind: Kind, len: int) -> None:
    rig = kind(8)
    rig.give((BUFFERS, len, INDIRECT))
    broken(rig, f"an indirect table of {len} bytes")
    assert rig.steps == 0


@pytest.mark.parametrize("addr", [0, BUFFERS + (1 << 16) - 8, (1 << 64) - 16])
def test_q14_an_indirect_table_outside_memory_breaks(kind: Kind, addr: int) -> None:
    rig = kind(8)
    rig.give((addr, 16, INDIRECT))
    broken(rig, "points outside guest memory")


def test_q14_an_indirect_table_may_cross_a_border_of_regions(kind: Kind) -> None:
    rig, table = kind(8), BUFFERS + (1 << 15) - 24
    rig.give((table, rig.table(table, (BUFFERS, 1, 0), (0, 0, 0), (BUFFERS, 2, 0)), INDIRECT))
    assert pop(rig).readable_size == 3


def test_q14_an_indirect_table_as_long_as_the_queue_is_taken(kind: Kind) -> None:
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, *[(BUFFERS, 2, 0)] * 8), INDIRECT))
    assert pop(rig).readable_size == 16


def test_q14_an_indirect_chain_that_leaves_its_table_breaks(kind: Kind) -> None:
    """Also Q32: NEXT in the last descriptor of a table."""
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, NEXT)), INDIRECT))
    broken(rig, "continues (at 1, the table has 1|after the last descriptor of its indirect table)")


@pytest.mark.parametrize("addr", [BUFFERS, 0, (1 << 64) - 1])
def test_q16_empty_buffers_are_skipped_wherever_they_are(kind: Kind, addr: int) -> None:
    rig = kind(8)
    rig.give(*[(addr, 0, 0)] * 7, (addr, 0, WRITE))
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size, chain.read()) == (0, 0, b"")


def test_q17_a_chain_of_more_than_4_gib_breaks_before_anything_is_read(kind: Kind) -> None:
    rig = kind(4)
    rig.give((BUFFERS, 2, 0), (BUFFERS, 0xFFFF, 0), (BUFFERS, (1 << 32) - 0x10000, 0))
    broken(rig, r"longer than 2\^32 bytes")
    assert rig.steps == 4


def test_q17_a_buffer_of_4_gib_that_is_not_there_breaks(kind: Kind) -> None:
    rig = kind(4)
    rig.give((BUFFERS, (1 << 32) - 1, 0))
    broken(rig, "points outside guest memory")


def test_q18_readable_after_writable_breaks(kind: Kind) -> None:
    rig = kind(4)
    rig.give((BUFFERS, 1, WRITE), (BUFFERS, 1, 0))
    broken(rig, "device-readable descriptor follows a device-writable one")


def test_q18_readable_after_writable_breaks_in_a_table(kind: Kind) -> None:
    rig = kind(4)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, WRITE), (BUFFERS, 1, 0)), INDIRECT))
    broken(rig, "device-readable descriptor follows a device-writable one")


def test_q18_writable_memory_that_is_mapped_read_only_breaks(kind: Kind) -> None:
    rig = kind(4, read_only=True)
    rig.give((BUFFERS, 1, WRITE))
    broken(rig, "was shared read-only")


def test_q18_readable_memory_may_be_mapped_read_only(kind: Kind) -> None:
    rig = kind(4, read_only=True)
    rig.give((BUFFERS, 1, 0))
    assert pop(rig).read() == b"\0"


@pytest.mark.parametrize("flags", [0, WRITE])
def test_q19_a_chain_of_one_kind_has_nothing_of_the_other(kind: Kind, flags: int) -> None:
    rig = kind(4)
    rig.give((BUFFERS, 4, flags))
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == ((0, 4) if flags else (4, 0))
    assert chain.write(b"answer") == chain.written == (4 if flags else 0)
    assert bytes(rig.buffers[:6]) == (b"answ" if flags else b"\0" * 4) + b"\0\0"


def test_q21_a_header_in_pieces_of_a_byte_reads_the_same(kind: Kind) -> None:
    rig = kind(8)
    rig.buffers[:6] = b"header"
    rig.give(*[(BUFFERS + index, 1, 0) for index in range(6)])
    chain = pop(rig)
    assert [chain.read(2), chain.read(0), chain.read(3), chain.read(), chain.read()] == [b"he", b"", b"ade", b"r", b""]


def test_q23_a_descriptor_is_read_once(kind: Kind) -> None:
    """What a chain refers to does not change when the driver changes the table afterwards."""
    rig = kind(4)
    rig.buffers[:4] = b"good"
    rig.give((BUFFERS, 4, 0))
    chain = pop(rig)
    rig.describe(0, addr=0, len=1 << 31, flags=NEXT | WRITE, next=0)
    assert chain.read() == b"good"


def test_q23_an_indirect_table_is_read_once(kind: Kind) -> None:
    rig = kind(4)
    rig.buffers[:4] = b"good"
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 4, 0)), INDIRECT))
    chain = pop(rig)
    rig.table(TABLE, (0, 1 << 31, WRITE))
    assert (chain.read(), chain.writable_size) == (b"good", 0)


def test_q28_a_kick_with_an_empty_ring_does_nothing(kind: Kind) -> None:
    rig = kind(8)
    before = bytes(rig.descriptors)
    for _ in range(100):
        assert rig.device.pop() is None
        assert rig.device.publish() is False
    assert (bytes(rig.descriptors), rig.steps) == (before, 0)


def test_used_entries_show_at_the_publication_and_all_at_once(kind: Kind) -> None:
    rig = kind(4)
    heads = [rig.driver.add([], [(BUFFERS, 8)]) for _ in range(3)]
    chains = [pop(rig) for _ in range(3)]
    for chain in (chains[2], chains[0]):
        chain.write(b"ok")
        rig.device.push(chain)
        assert rig.driver.collect() is None
    assert rig.device.publish()
    assert not rig.device.publish()
    assert [rig.driver.collect() for _ in range(3)] == [(heads[2], 2), (heads[0], 2), None]
