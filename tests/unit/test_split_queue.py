"""The device half of a split virtqueue: what a driver may leave in it, and what breaks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.halves import HALVES, using
from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, WRITE, Rig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.chain import DescriptorChain


@pytest.fixture(autouse=True, params=HALVES)
def half(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


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


@pytest.mark.parametrize("size", [1, 2, 8, 1024])
@pytest.mark.parametrize("loop", ["self", "pair", "all"])
def test_q01_a_loop_breaks_the_queue_in_as_many_steps_as_it_has_entries(size: int, loop: str) -> None:
    rig = Rig(size)
    for index in range(size):
        following = {"self": index, "pair": (index ^ 1) % size, "all": (index + 1) % size}[loop]
        rig.describe(index, flags=NEXT, next=following)
    rig.offer(0)
    with pytest.raises(QueueBroken, match="is longer than the queue"):
        rig.device.pop()
    assert rig.steps == size


@pytest.mark.parametrize("size", [1, 2, 8, 256])
def test_q02_a_chain_of_the_whole_queue_is_taken(size: int) -> None:
    rig = Rig(size)
    for index in range(size):
        rig.describe(index, len=1, flags=NEXT if index + 1 < size else 0, next=index + 1)
    rig.offer(0)
    assert pop(rig).readable_size == size


@pytest.mark.parametrize("following", [8, 9, 65535])
def test_q03_a_chain_that_continues_outside_the_table_breaks(following: int) -> None:
    rig = Rig(8)
    rig.describe(0, flags=NEXT, next=following)
    rig.offer(0)
    broken(rig, f"continues at {following}, the table has 8")


@pytest.mark.parametrize("head", [8, 9, 65535])
def test_q04_a_head_outside_the_table_breaks(head: int) -> None:
    rig = Rig(8)
    rig.offer(head)
    broken(rig, f"chain starts at descriptor {head}, the queue has 8")


@pytest.mark.parametrize("step", [9, 1000, -1, -8])
def test_q05_an_available_index_that_jumps_or_goes_back_breaks(step: int) -> None:
    rig = Rig(8)
    rig.available[2:4] = (step & 0xFFFF).to_bytes(2, "little")
    broken(rig, f"available index jumped by {step & 0xFFFF}")


@pytest.mark.parametrize("base", [65530, 65535, 0])
def test_q05_indices_wrap(base: int) -> None:
    rig = Rig(8, base=base)
    for _ in range(20):
        rig.describe(0)
        rig.offer(0)
        rig.device.push(pop(rig))
        assert rig.device.publish()
    assert rig.device.base == (base + 20) & 0xFFFF
    assert int.from_bytes(rig.used[2:4], "little") == (base + 20) & 0xFFFF


def test_q05_a_full_ring_is_taken() -> None:
    rig = Rig(8)
    for index in range(8):
        rig.describe(index)
    rig.offer(*range(8))
    assert [pop(rig).head for _ in range(8)] == list(range(8))
    assert rig.device.pop() is None


def test_q10_an_indirect_table_that_was_not_negotiated_breaks() -> None:
    rig = Rig(8, indirect=False)
    rig.describe(0, len=rig.table(BUFFERS, (BUFFERS, 1, 0, 0)), flags=INDIRECT)
    rig.offer(0)
    broken(rig, "was not negotiated")


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT])
def test_q11_an_indirect_table_inside_another_breaks(flags: int) -> None:
    rig = Rig(8)
    rig.describe(0, len=rig.table(BUFFERS, (BUFFERS, 16, flags, 0)), flags=INDIRECT)
    rig.offer(0)
    broken(rig, "inside an indirect table, or with NEXT set")


def test_q12_indirect_with_next_breaks() -> None:
    rig = Rig(8)
    rig.describe(0, len=rig.table(BUFFERS, (BUFFERS, 1, 0, 0)), flags=INDIRECT | NEXT, next=1)
    rig.offer(0)
    broken(rig, "with NEXT set")


@pytest.mark.parametrize("direct", [0, 1, 3])
def test_q12_direct_descriptors_may_end_in_one_indirect_table(direct: int) -> None:
    rig = Rig(8)
    for index in range(direct):
        rig.describe(index, len=2, flags=NEXT, next=index + 1)
    size = rig.table(BUFFERS + 0x100, (BUFFERS, 3, NEXT, 1), (BUFFERS, 4, WRITE, 0))
    rig.describe(direct, BUFFERS + 0x100, size, INDIRECT)
    rig.offer(0)
    chain = pop(rig)
    assert (chain.head, chain.readable_size, chain.writable_size) == (0, 2 * direct + 3, 4)


def test_q12_direct_and_indirect_descriptors_count_together() -> None:
    rig = Rig(2)
    rig.describe(0, flags=NEXT, next=1)
    rig.describe(1, BUFFERS + 0x100, rig.table(BUFFERS + 0x100, (BUFFERS, 1, NEXT, 1), (BUFFERS, 1, 0, 0)), INDIRECT)
    rig.offer(0)
    broken(rig, "is longer than the queue")


def test_q13_the_write_flag_of_an_indirect_descriptor_is_ignored() -> None:
    rig = Rig(8)
    rig.describe(0, BUFFERS + 0x100, rig.table(BUFFERS + 0x100, (BUFFERS, 5, 0, 0)), INDIRECT | WRITE)
    rig.offer(0)
    assert (chain := pop(rig)).readable_size == 5
    assert chain.writable_size == 0


@pytest.mark.parametrize("len", [0, 8, 17, 9 * 16, (1 << 32) - 16])
def test_q14_an_indirect_table_of_an_impossible_size_breaks(len: int) -> None:
    rig = Rig(8)
    rig.describe(0, len=len, flags=INDIRECT)
    rig.offer(0)
    broken(rig, f"an indirect table of {len} bytes")
    assert rig.steps == 0


@pytest.mark.parametrize("addr", [0, BUFFERS + (1 << 16) - 8, (1 << 64) - 16])
def test_q14_an_indirect_table_outside_memory_breaks(addr: int) -> None:
    rig = Rig(8)
    rig.describe(0, addr, 16, INDIRECT)
    rig.offer(0)
    broken(rig, "points outside guest memory")


def test_q14_an_indirect_table_may_cross_a_border_of_regions() -> None:
    rig, middle = Rig(8), BUFFERS + (1 << 15)
    rig.describe(0, middle - 24, rig.table(middle - 24, (BUFFERS, 1, NEXT, 2), (0, 0, 0, 0), (BUFFERS, 2, 0, 0)), INDIRECT)
    rig.offer(0)
    assert pop(rig).readable_size == 3


def test_q14_an_indirect_chain_that_leaves_its_table_breaks() -> None:
    rig = Rig(8)
    rig.describe(0, BUFFERS + 0x100, rig.table(BUFFERS + 0x100, (BUFFERS, 1, NEXT, 1)), INDIRECT)
    rig.offer(0)
    broken(rig, "continues at 1, the table has 1")


@pytest.mark.parametrize("addr", [BUFFERS, 0, (1 << 64) - 1])
def test_q16_empty_buffers_are_skipped_wherever_they_are(addr: int) -> None:
    rig = Rig(8)
    for index in range(8):
        rig.describe(index, addr, 0, NEXT if index < 7 else WRITE, index + 1)
    rig.offer(0)
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size, chain.read()) == (0, 0, b"")


def test_q17_a_chain_of_more_than_4_gib_breaks_before_anything_is_read() -> None:
    rig = Rig(4)
    for index in range(3):
        rig.describe(index, BUFFERS, (1 << 32) - 1 if index else 2, NEXT, index + 1)
    rig.offer(0)
    broken(rig, r"longer than 2\^32 bytes")
    assert rig.steps <= 4


def test_q17_a_buffer_of_4_gib_that_is_not_there_breaks() -> None:
    rig = Rig(4)
    rig.describe(0, BUFFERS, (1 << 32) - 1)
    rig.offer(0)
    broken(rig, "points outside guest memory")


def test_q18_readable_after_writable_breaks() -> None:
    rig = Rig(4)
    rig.describe(0, flags=WRITE | NEXT, next=1)
    rig.describe(1)
    rig.offer(0)
    broken(rig, "device-readable descriptor follows a device-writable one")


def test_q18_writable_memory_that_is_mapped_read_only_breaks() -> None:
    rig = Rig(4, read_only=True)
    rig.describe(0, flags=WRITE)
    rig.offer(0)
    broken(rig, "was shared read-only")
    rig.describe(0)
    assert pop(rig).read() == b"\0"


@pytest.mark.parametrize("flags", [0, WRITE])
def test_q19_a_chain_of_one_kind_has_nothing_of_the_other(flags: int) -> None:
    rig = Rig(4)
    rig.describe(0, len=4, flags=flags)
    rig.offer(0)
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == ((0, 4) if flags else (4, 0))
    assert chain.write(b"answer") == chain.written == (4 if flags else 0)
    assert bytes(rig.buffers[:6]) == (b"answ" if flags else b"\0" * 4) + b"\0\0"


def test_q21_a_header_in_pieces_of_a_byte_reads_the_same() -> None:
    rig = Rig(8)
    rig.buffers[:6] = b"header"
    for index in range(6):
        rig.describe(index, BUFFERS + index, 1, NEXT if index < 5 else 0, index + 1)
    rig.offer(0)
    chain = pop(rig)
    assert [chain.read(2), chain.read(0), chain.read(3), chain.read(), chain.read()] == [b"he", b"", b"ade", b"r", b""]


def test_q28_a_kick_with_an_empty_ring_does_nothing() -> None:
    rig = Rig(8)
    assert rig.device.pop() is None
    assert rig.device.publish() is False


def test_used_entries_show_at_the_publication_and_all_at_once() -> None:
    rig = Rig(4)
    for index in range(3):
        rig.describe(index, len=8, flags=WRITE)
    rig.offer(0, 1, 2)
    chains = [pop(rig) for _ in range(3)]
    for chain in (chains[2], chains[0]):
        chain.write(b"ok")
        rig.device.push(chain)
        assert int.from_bytes(rig.used[2:4], "little") == 0
    assert rig.device.publish()
    assert not rig.device.publish()
    assert int.from_bytes(rig.used[2:4], "little") == 2
    assert list(rig.used[4:20].cast("I")) == [2, 2, 0, 2]


def test_a_descriptor_is_read_once() -> None:
    """What a chain refers to does not change when the driver changes the table afterwards (Q23)."""
    rig = Rig(4)
    rig.buffers[:4] = b"good"
    rig.describe(0, len=4)
    rig.offer(0)
    chain = pop(rig)
    rig.describe(0, addr=0, len=1 << 31, flags=NEXT | WRITE, next=0)
    assert chain.read() == b"good"
