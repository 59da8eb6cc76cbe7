"""The driver half of a virtqueue, in both formats, against the device half."""

from __future__ import annotations

import pytest

from tests.virtio_rig import BUFFERS, DESCRIPTOR, RIGS, PackedRig, Rig, SplitRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.buffers import Table
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.formats import PACKED, SPLIT, Format, ring_format
from vhostuser.virtio.numbers import DeviceId, Feature, Status, feature_names

Kind = type[Rig]
both = pytest.mark.parametrize("kind", RIGS.values(), ids=RIGS.keys())


def answer(rig: Rig, data: bytes) -> None:
    chain = rig.device.pop()
    assert chain is not None
    chain.write(data)
    rig.device.push(chain)
    rig.device.publish()


@both
def test_a_request_goes_there_and_its_answer_comes_back(kind: Kind) -> None:
    rig = kind(4)
    rig.buffers[:5] = b"hello"
    head = rig.driver.add([(BUFFERS, 3), (BUFFERS + 3, 2)], [(BUFFERS + 16, 8)])
    assert rig.driver.collect() is None
    chain = rig.device.pop()
    assert chain is not None
    assert (chain.head, chain.read(), chain.write(b"world")) == (head, b"hello", 5)
    rig.device.push(chain)
    assert rig.driver.collect() is None
    assert rig.device.publish()
    assert rig.driver.collect() == (head, 5)
    assert rig.driver.collect() is None
    assert bytes(rig.buffers[16:21]) == b"world"


@pytest.mark.parametrize(
    ("kind", "start", "turns"), [(SplitRig, 0, 70_000), (SplitRig, 65534, 10), (PackedRig, 0, 100), (PackedRig, 3, 100)]
)
def test_more_requests_than_indices_go_round(kind: Kind, start: int, turns: int) -> None:
    rig = kind(2, start=start)
    for turn in range(turns):
        head = rig.driver.add([(BUFFERS, 1)], [(BUFFERS, 1)])
        answer(rig, b"x")
        assert rig.driver.collect() == (head, 1), turn


@both
def test_descriptors_come_back_with_their_chain(kind: Kind) -> None:
    rig = kind(4)
    rig.driver.add([(BUFFERS, 1)] * 3, [])
    for too_many in (2, 0):
        with pytest.raises(BufferError, match=f"{too_many} descriptors wanted, 1 of 4 are free"):
            rig.driver.add([(BUFFERS, 1)] * too_many, [])
    answer(rig, b"")
    rig.driver.collect()
    rig.driver.add([(BUFFERS, 1)] * 4, [])
    assert rig.device.pop()


@both
def test_a_table_of_buffers_takes_one_descriptor(kind: Kind) -> None:
    rig = kind(4)
    rig.buffers[:5] = b"hello"
    tables = [Table(BUFFERS + 64 * at, rig.buffers[64 * at : 64 * at + 64]) for at in range(1, 6)]
    heads = [rig.driver.add([(BUFFERS, 3), (BUFFERS + 3, 2)], [(BUFFERS + 16, 8)], table) for table in tables[:4]]
    with pytest.raises(BufferError, match="1 descriptors wanted, 0 of 4 are free"):
        rig.driver.add([(BUFFERS, 1)], [(BUFFERS, 1)], tables[4])
    for head in heads:
        chain = rig.device.pop()
        assert chain is not None
        assert (chain.head, chain.entries, chain.read(), chain.write(b"world")) == (head, 1, b"hello", 5)
        rig.device.push(chain)
    rig.device.publish()
    assert [rig.driver.collect() for _ in heads] == [(head, 5) for head in heads]
    rig.driver.add([(BUFFERS, 1)] * 4, [])


@both
def test_a_table_has_as_many_buffers_as_the_queue_has_entries(kind: Kind) -> None:
    rig = kind(4)
    table = Table(BUFFERS + 64, rig.buffers[64:128])
    for count in (0, 5):
        with pytest.raises(BufferError, match=f"{count} buffers wanted, a table of this queue has 1 to 4"):
            rig.driver.add([(BUFFERS, 1)] * count, [], table)
    rig.driver.add([(BUFFERS, 1)] * 4, [], table)
    chain = rig.device.pop()
    assert chain is not None
    assert chain.readable_size == 4


@pytest.mark.parametrize(("kind", "rest"), [(SplitRig, [(1, 1), (3, 2), (2, 0)]), (PackedRig, [(0, 0), (0, 2), (0, 2)])])
def test_entries_of_a_table_are_linked_in_a_split_ring_and_only_in_order_in_a_packed_one(
    kind: Kind, rest: list[tuple[int, int]]
) -> None:
    rig = kind(4)
    rig.driver.add([(BUFFERS, 3)], [(BUFFERS, 4), (BUFFERS, 5)], Table(BUFFERS + 64, rig.buffers[64:128]))
    entries = list(DESCRIPTOR.iter_unpack(rig.buffers[64:112]))
    assert entries == [(BUFFERS, length, *more) for length, more in zip((3, 4, 5), rest, strict=True)]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(kind, head) for kind in RIGS.values() for head in (3, 9, 65535)] + [(SplitRig, (1 << 32) - 1)],
)
def test_a_device_that_gives_back_what_it_does_not_have_breaks_the_queue(kind: Kind, head: int) -> None:
    rig = kind(4)
    rig.driver.add([(BUFFERS, 1)], [])
    rig.device.push(DescriptorChain(head, [], []))
    rig.device.publish()
    for _ in range(2):
        with pytest.raises(QueueBroken, match=f"gave back chain {head}"):
            rig.driver.collect()


@both
def test_answers_may_come_in_another_order(kind: Kind) -> None:
    rig = kind(4)
    heads = [rig.driver.add([(BUFFERS, 1)], []) for _ in range(3)]
    chains = [rig.device.pop() for _ in range(3)]
    for chain in reversed(chains):
        assert chain is not None
        rig.device.push(chain)
    rig.device.publish()
    assert [rig.driver.collect() for _ in range(3)] == [(head, 0) for head in reversed(heads)]


@pytest.mark.parametrize(
    ("ring", "size", "sizes"),
    [(SPLIT, 1, (16, 6, 12)), (SPLIT, 256, (4096, 516, 2052)), (PACKED, 1, (16, 4, 4)), (PACKED, 255, (4080, 4, 4))],
)
def test_rings_have_the_bytes_of_the_specification(ring: Format, size: int, sizes: tuple[int, int, int]) -> None:
    assert ring.sizes(size) == sizes


@pytest.mark.parametrize(
    ("features", "ring"), [(0, SPLIT), (1 << 34, PACKED), (~(1 << 34), SPLIT), (1 << 33 | 1 << 35, SPLIT)]
)
def test_the_format_is_what_was_acknowledged(features: int, ring: Format) -> None:
    assert ring_format(features) is ring


def test_feature_names() -> None:
    wanted = 1 << Feature.VERSION_1 | 1 << 26 | 1 << 30 | 1 << 3
    assert feature_names(wanted) == {"VERSION_1", "LOG_ALL", "PROTOCOL_FEATURES", "BIT_3"}
    assert feature_names(0) == frozenset()


def test_numbers_that_the_specification_fixes() -> None:
    assert (DeviceId.FS, DeviceId.PMEM, Feature.RING_PACKED, Feature.ACCESS_PLATFORM) == (26, 27, 34, 33)
    assert Status(15) == Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK
