"""A packed virtqueue: what is its own, in both halves. What both formats share is in `test_queues`."""

from __future__ import annotations

import pytest

from tests.virtio_rig import AVAIL, BUFFERS, INDIRECT, NEXT, PACKED_RIGS, USED, WRITE, CompiledPackedRig, PackedRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.packed import FIRST_BASE, PackedQueue, packed_sizes, read_base, whole_base, write_base

TABLE = BUFFERS + 0x100
both = pytest.mark.parametrize("kind", PACKED_RIGS.values(), ids=PACKED_RIGS.keys())


def pop(rig: PackedRig) -> DescriptorChain:
    chain = rig.device.pop()
    assert chain is not None
    return chain


def broken(rig: PackedRig, match: str) -> None:
    """The next request breaks the queue, and does so again."""
    base = rig.device.base
    for _ in range(2):
        with pytest.raises(QueueBroken, match=match):
            rig.device.pop()
    assert rig.device.base == base


def flags_at(rig: PackedRig, slot: int) -> int:
    return int.from_bytes(rig.descriptors[16 * slot + 14 : 16 * slot + 16], "little")


@both
@pytest.mark.parametrize("size", [1, 2, 7, 1024])
@pytest.mark.parametrize("round", [0, 1])
def test_q01_a_chain_round_the_whole_ring_breaks_in_as_many_steps_as_it_has_entries(
    kind: type[PackedRig], size: int, round: int
) -> None:
    rig = kind(size, start=round * size)
    for index in range(size):
        rig.describe(rig.next + index, flags=NEXT)
    with pytest.raises(QueueBroken, match="a chain wants descriptor 0, which is not available"):
        rig.device.pop()
    assert rig.steps == size


@both
@pytest.mark.parametrize("size", [1, 3, 5, 8, 255])
def test_q06_a_ring_of_any_size_goes_round(kind: type[PackedRig], size: int) -> None:
    rig = kind(size)
    for _ in range(4 * size + 1):
        given = rig.driver.add([], [(BUFFERS, 1)])
        chain = pop(rig)
        chain.write(b"x")
        rig.device.push(chain)
        assert rig.device.publish()
        assert rig.driver.collect() == (given, 1)
        assert (rig.device.pop(), rig.driver.collect()) == (None, None)


@both
def test_q06_the_largest_ring_has_indices_of_15_bits(kind: type[PackedRig]) -> None:
    rig = kind(32768, start=65535)
    assert rig.device.base == 0x7FFF7FFF
    rig.give((BUFFERS, 1, 0))
    rig.device.push(pop(rig))
    rig.device.publish()
    assert rig.device.base == FIRST_BASE


@both
def test_q12_an_indirect_descriptor_after_direct_ones_breaks(kind: type[PackedRig]) -> None:
    """A driver MUST NOT "write direct descriptors with INDIRECT set in a scatter-gather list linked by NEXT flags"."""
    rig = kind(8)
    rig.give((BUFFERS, 1, 0), (TABLE, rig.table(TABLE, (BUFFERS, 1, 0)), INDIRECT))
    broken(rig, "an indirect descriptor follows a direct one")


@both
def test_q32_next_within_an_indirect_table_means_nothing(kind: type[PackedRig]) -> None:
    """DPDK's driver sets it."""
    rig = kind(8)
    rig.give((TABLE, rig.table(TABLE, (BUFFERS, 1, NEXT | AVAIL), (BUFFERS, 2, NEXT | USED), (BUFFERS, 4, WRITE)), INDIRECT))
    chain = pop(rig)
    assert (chain.readable_size, chain.writable_size) == (3, 4)


@both
@pytest.mark.parametrize("start", [5, 6, 7, 13, 14, 15], ids=lambda start: f"at {start}")
def test_q32_a_chain_goes_across_the_end_of_the_ring(kind: type[PackedRig], start: int) -> None:
    rig = kind(8, start=start)
    rig.buffers[:4] = b"abcd"
    for _ in range(3):
        given = rig.driver.add([(BUFFERS + at, 1) for at in range(4)], [(BUFFERS + 8, 8)])
        rig.steps = 0
        chain = pop(rig)
        assert rig.steps == (0 if isinstance(rig, CompiledPackedRig) else 5), "nothing is unusual about it"
        assert (chain.head, chain.entries, chain.read(), chain.write(b"answer")) == (given, 5, b"abcd", 6)
        assert rig.device.pop() is None
        rig.device.push(chain)
        rig.device.publish()
        assert rig.driver.collect() == (given, 6)
    assert rig.device.base == rig.base_at((start + 15) % 16)


@both
@pytest.mark.parametrize("start", [0, 3, 4, 7])
@pytest.mark.parametrize("other", ["available in another round", "used", "neither"])
def test_q32_a_descriptor_with_the_wrong_wrap_counter_is_not_available(
    kind: type[PackedRig], start: int, other: str
) -> None:
    rig = kind(4, start=start)
    mark, wrong = (AVAIL, USED) if start < 4 else (USED, AVAIL)
    flags = {"available in another round": wrong, "used": AVAIL | USED, "neither": 0}[other]
    slot = start % 4
    rig.descriptors[16 * slot + 14 : 16 * slot + 16] = flags.to_bytes(2, "little")
    for _ in range(3):
        assert rig.device.pop() is None
    rig.descriptors[16 * slot + 14 : 16 * slot + 16] = mark.to_bytes(2, "little")
    assert rig.device.pop()


@both
@pytest.mark.parametrize("flags", [0, AVAIL | USED, USED])
def test_q32_a_chain_that_continues_at_a_descriptor_that_is_not_available_breaks(kind: type[PackedRig], flags: int) -> None:
    rig = kind(4)
    rig.describe(0, flags=NEXT)
    rig.descriptors[30:32] = flags.to_bytes(2, "little")
    broken(rig, "a chain wants descriptor 1, which is not available")


@both
@pytest.mark.parametrize("last", [0, 3])
@pytest.mark.parametrize("buffer_id", [4, 5, 32768, 65535])
def test_q32_a_buffer_id_beyond_the_queue_breaks(kind: type[PackedRig], buffer_id: int, last: int) -> None:
    rig = kind(4)
    for index in range(last + 1):
        rig.describe(index, flags=NEXT if index < last else 0, next=buffer_id if index == last else 0)
    broken(rig, f"buffer id {buffer_id}, the queue has 4 descriptors")


@both
def test_q32_the_buffer_id_is_that_of_the_last_descriptor(kind: type[PackedRig]) -> None:
    rig = kind(4)
    rig.describe(0, flags=NEXT, next=60000)
    rig.describe(1, next=3)
    assert pop(rig).head == 3


@both
def test_q26_a_driver_that_offers_what_the_device_still_has_breaks(kind: type[PackedRig]) -> None:
    rig = kind(2)
    rig.give((BUFFERS, 1, 0), (BUFFERS, 1, 0))
    chain = pop(rig)
    rig.give((BUFFERS, 1, 0))
    broken(rig, "a chain wants descriptor 0, which is not available")
    rig.device.push(chain)
    broken(rig, "a chain wants descriptor 0, which is not available")


@pytest.mark.parametrize(
    ("base", "size", "positions"),
    [
        (0x80008000, 8, (0, 0)),
        (0x80078007, 8, (7, 7)),
        (0, 8, (8, 8)),
        (0x00070007, 8, (15, 15)),
        (0x80008004, 5, (4, 0)),
        (0x80000000, 8, (8, 0)),  # the device has the whole ring
        (0x00038001, 8, (1, 11)),
        (0x0003, 8, (11, 8)),  # three in progress
        (0x8000, 8, (0, 8)),  # the same from the other round
        (0x80018005, 8, (5, 1)),
    ],
)
def test_a_base_is_two_indices_and_two_wrap_counters(base: int, size: int, positions: tuple[int, int]) -> None:
    assert read_base(base, size) == positions
    assert write_base(*positions, size) == base


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        (0x8000, 0x80008000),
        (0x8005, 0x80058005),
        (0x80000000, 0x80000000),
        (5, 5),
        (0x50005, 0x50005),
        (0x80018005, 0x80018005),
    ],
)
def test_dpdks_half_of_a_base_is_that_of_an_idle_ring(base: int, whole: int) -> None:
    assert whole_base(base) == whole


@both
@pytest.mark.parametrize("base", [0x80088008, 0x80088000, 0x80008008, 0x7FFF7FFF, 0x80018000, 0x18003, 0xFFFFFFFF])
def test_a_base_outside_the_ring_breaks(kind: type[PackedRig], base: int) -> None:
    rig = kind(8)
    with pytest.raises(QueueBroken, match=f"base {base:#x} is none of a packed ring of 8 descriptors"):
        rig.new_device(base, indirect=True)


@both
@pytest.mark.parametrize("start", range(10))
def test_a_queue_goes_on_at_its_base(kind: type[PackedRig], start: int) -> None:
    """Each request is taken by a device of its own, as after a stop and a start."""
    rig = kind(5, start=start)
    for _ in range(11):
        given = rig.driver.add([(BUFFERS, 1), (BUFFERS, 1)], [])
        rig.device.push(pop(rig))
        rig.device.publish()
        rig.device = rig.new_device(rig.device.base, indirect=True)
        assert rig.driver.collect() == (given, 0)


@both
def test_a_base_between_two_batches_is_where_the_driver_looks(kind: type[PackedRig]) -> None:
    """What was pushed and not published has left no trace: a device that goes on there is not out of step."""
    rig = kind(4)
    given = [rig.driver.add([(BUFFERS, 1)], []) for _ in range(3)]
    rig.device.push(pop(rig))
    rig.device.publish()
    for _ in range(2):
        rig.device.push(pop(rig))
    assert rig.device.base == 0x80018003
    assert rig.driver.collect() == (given[0], 0)
    rig.device = rig.new_device(rig.device.base, indirect=True)
    last = rig.driver.add([(BUFFERS, 1)], [])
    rig.device.push(pop(rig))
    rig.device.publish()
    assert rig.driver.collect() == (last, 0)
    assert rig.driver.collect() is None


class Written:
    """Live 16-bit fields, and what was written to them in order."""

    def __init__(self, view: memoryview, log: list[tuple[int, int]]) -> None:
        self._view, self._log = view, log

    def __getitem__(self, index: int) -> int:
        return int(self._view[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._view[index] = value
        self._log.append((index // 8, index % 8))


def test_the_flags_of_the_first_used_descriptor_are_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, log = PackedRig(4), list[tuple[int, int]]()
    for _ in range(3):
        rig.driver.add([(BUFFERS, 1)], [])
    monkeypatch.setattr(rig.device, "_halves", Written(rig.descriptors.cast("H"), log))
    for _ in range(3):
        rig.device.push(pop(rig))
    assert log == [(0, 6), (1, 6), (2, 6)]
    rig.device.publish()
    assert log[3:] == [(2, 7), (1, 7), (0, 7)]


@pytest.mark.parametrize("start", [0, 3, 7])
def test_the_flags_of_the_first_available_descriptor_are_written_last(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, log = PackedRig(4, start=start), list[tuple[int, int]]()
    monkeypatch.setattr(rig.driver, "_halves", Written(rig.descriptors.cast("H"), log))
    rig.driver.add([(BUFFERS, 1), (BUFFERS, 1)], [(BUFFERS, 1)])
    assert log == [((start + at) % 4, 7) for at in (2, 1, 0)]


@both
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("written", [0, 3])
def test_a_used_descriptor_has_the_fields_of_the_specification(kind: type[PackedRig], start: int, written: int) -> None:
    rig = kind(4, start=start)
    rig.describe(start, len=8, flags=WRITE, next=2)
    chain = pop(rig)
    chain.write(bytes(written))
    rig.device.push(chain)
    rig.device.publish()
    slot = 16 * (start % 4)
    assert int.from_bytes(rig.descriptors[slot + 8 : slot + 12], "little") == written
    assert int.from_bytes(rig.descriptors[slot + 12 : slot + 14], "little") == 2
    assert flags_at(rig, start % 4) == (WRITE if written else 0) | (AVAIL | USED if start < 4 else 0)


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0xFFFF])
def test_q27_a_driver_that_wants_no_notification_gets_one_all_the_same(flags: int) -> None:
    rig = PackedRig(4)
    rig.available[:] = b"\xff\xff" + flags.to_bytes(2, "little")
    rig.give((BUFFERS, 1, 0))
    rig.device.push(pop(rig))
    assert rig.device.publish()
    assert bytes(rig.available[2:]) == flags.to_bytes(2, "little")


def test_a_device_asks_for_every_notification() -> None:
    """Whatever a device before it has left."""
    parts = [memoryview(bytearray(b"\1" * size)) for size in packed_sizes(2)]
    PackedQueue(2, parts[0], parts[1], parts[2], memory=PackedRig(2))
    assert bytes(parts[2][2:]) == b"\0\0"
