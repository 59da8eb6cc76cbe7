"""Where both halves of a ring are, chain by chain and round by round; long chains; flags that mean nothing."""

from __future__ import annotations

import pytest

from tests.virtio_rig import AVAIL, BUFFERS, INDIRECT, NEXT, PACKED_RIGS, RIGS, USED, WRITE, PackedRig, Rig, SplitRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.buffers import Table
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.numbers import MAX_CHAIN_BYTES

both = pytest.mark.parametrize("kind", RIGS.values(), ids=RIGS.keys())
packed = pytest.mark.parametrize("kind", PACKED_RIGS.values(), ids=PACKED_RIGS.keys())
TABLE = BUFFERS + 0x100
MEANINGLESS = 0xFFFF & ~(NEXT | WRITE | INDIRECT | AVAIL | USED)


def pop(rig: Rig) -> DescriptorChain:
    chain = rig.device.pop()
    assert chain is not None
    return chain


@both
@pytest.mark.parametrize("size", [1, 2, 4])
def test_q05_both_halves_are_at_the_same_place_after_each_chain(kind: type[Rig], size: int) -> None:
    for start in range(2 * size):
        rig = kind(size, start=start)
        for turn in range(5 * size):
            place = rig.base_at((start + turn) % rig.last)
            assert (rig.device.base, rig.driver.base) == (place, place)
            name = rig.driver.add([(BUFFERS, 1)], [])
            assert rig.driver.base == place
            rig.device.push(pop(rig))
            assert rig.driver.base == place
            rig.device.publish()
            assert rig.driver.base == place
            assert rig.driver.collect() == (name, 0)


@packed
@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("held", [1, 2, 3, 4])
def test_q26_a_chain_that_reaches_into_what_the_device_has_breaks_wherever_it_lies(
    kind: type[PackedRig], start: int, held: int
) -> None:
    rig = kind(4, start=start)
    rig.give(*[(BUFFERS, 1, 0)] * held)
    pop(rig)
    rig.give(*[(BUFFERS, 1, 0)] * (5 - held))
    with pytest.raises(QueueBroken, match="which is not available"):
        rig.device.pop()


@packed
@pytest.mark.parametrize("start", range(8))
def test_q02_a_chain_fills_what_is_left_of_the_ring(kind: type[PackedRig], start: int) -> None:
    for held in (1, 2, 3):
        rig = kind(4, start=start)
        rig.give(*[(BUFFERS, 1, 0)] * held)
        pop(rig)
        rig.give(*[(BUFFERS, 1, 0)] * (4 - held))
        assert pop(rig).entries == 4 - held


@both
def test_a_chain_may_have_more_than_256_buffers(kind: type[Rig]) -> None:
    rig = kind(512)
    rig.buffers[:300] = bytes(at & 0xFF for at in range(300))
    rig.driver.add([(BUFFERS + at, 1) for at in range(300)], [])
    assert pop(rig).read() == bytes(rig.buffers[:300])
    assert rig.device.pop() is None


@both
def test_a_table_may_have_more_than_256_buffers(kind: type[Rig]) -> None:
    rig = kind(512)
    table = Table(BUFFERS + 0x4000, rig.buffers[0x4000 : 0x4000 + 300 * 16])
    rig.driver.add([(BUFFERS + at, 1) for at in range(299)], [(BUFFERS + 0x1000, 7)], table)
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == (299, 7)


@both
@pytest.mark.parametrize("flags", [8, 1 << 8, 1 << 14, MEANINGLESS])
def test_q32_flags_that_mean_nothing_change_nothing(kind: type[Rig], flags: int) -> None:
    rig = kind(4)
    if isinstance(rig, SplitRig):
        rig.describe(0, len=3, flags=flags | NEXT, next=1)
        rig.describe(1, len=5, flags=flags | WRITE)
        rig.offer(0)
    else:
        rig.describe(0, len=3, flags=flags | NEXT)
        rig.describe(1, len=5, flags=flags | WRITE)
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == (3, 5)


@both
@pytest.mark.parametrize("flags", [8, 1 << 8, 1 << 14, MEANINGLESS])
def test_q14_flags_that_mean_nothing_change_nothing_in_a_table(kind: type[Rig], flags: int) -> None:
    rig = kind(4)
    size = rig.table(TABLE, (BUFFERS, 3, flags), (BUFFERS, 5, flags | WRITE))
    rig.give((TABLE, size, INDIRECT | flags))
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == (3, 5)


@both
def test_q10_a_table_has_one_entry_to_as_many_as_the_queue(kind: type[Rig]) -> None:
    for entries in range(6):
        for spare in (0, 1, 8, 15):
            rig = kind(4)
            rig.table(TABLE, *[(BUFFERS, 1, 0)] * max(1, entries))
            rig.give((TABLE, 16 * entries + spare, INDIRECT))
            if 1 <= entries <= 4 and not spare:
                assert pop(rig).readable_size == entries
            else:
                with pytest.raises(QueueBroken, match="an indirect table of"):
                    rig.device.pop()


class Endless:
    """Memory that has any number of bytes, none of which is ever looked at."""

    def slices(self, guest_addr: int, len: int) -> list[memoryview]:
        return []


@pytest.mark.parametrize("kind", [SplitRig, PackedRig], ids=["split", "packed"])
def test_a_chain_may_have_2_to_the_32_bytes_and_no_more(kind: type[Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CHAIN_BYTES == 0x1_0000_0000
    half = MAX_CHAIN_BYTES // 2
    for more in (0, 1):
        rig = kind(4)
        monkeypatch.setattr(rig.device, "memory", Endless())
        rig.give((BUFFERS, half, 0), (BUFFERS, half, 0), *[(BUFFERS, more, 0)] * more)
        if more:
            with pytest.raises(QueueBroken, match="longer than 2\\^32 bytes"):
                rig.device.pop()
        else:
            pop(rig)
