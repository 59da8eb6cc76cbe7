"""The device half of a split virtqueue: what is its own. What both formats share is in `test_queues`."""

from __future__ import annotations

import pytest

from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, SPLIT_RIGS, WRITE, SplitRig
from vhostuser.errors import QueueBroken
from vhostuser.virtio.chain import DescriptorChain

pytestmark = pytest.mark.parametrize("kind", SPLIT_RIGS.values(), ids=SPLIT_RIGS.keys())


def pop(rig: SplitRig) -> DescriptorChain:
    chain = rig.device.pop()
    assert chain is not None
    return chain


def broken(rig: SplitRig, match: str) -> None:
    """The next request breaks the queue, and does so again."""
    base = rig.device.base
    for _ in range(2):
        with pytest.raises(QueueBroken, match=match):
            rig.device.pop()
    assert rig.device.base == base


@pytest.mark.parametrize("size", [1, 2, 8, 1024])
@pytest.mark.parametrize("loop", ["self", "pair", "all"])
def test_q01_a_loop_breaks_the_queue_in_as_many_steps_as_it_has_entries(kind: type[SplitRig], size: int, loop: str) -> None:
    rig = kind(size)
    for index in range(size):
        following = {"self": index, "pair": (index ^ 1) % size, "all": (index + 1) % size}[loop]
        rig.describe(index, flags=NEXT, next=following)
    rig.offer(0)
    with pytest.raises(QueueBroken, match="is longer than the queue"):
        rig.device.pop()
    assert rig.steps == size


@pytest.mark.parametrize("following", [8, 9, 65535])
def test_q03_a_chain_that_continues_outside_the_table_breaks(kind: type[SplitRig], following: int) -> None:
    rig = kind(8)
    rig.describe(0, flags=NEXT, next=following)
    rig.offer(0)
    broken(rig, f"continues at {following}, the table has 8")


@pytest.mark.parametrize("head", [8, 9, 65535])
def test_q04_a_head_outside_the_table_breaks(kind: type[SplitRig], head: int) -> None:
    rig = kind(8)
    rig.offer(head)
    broken(rig, f"chain starts at descriptor {head}, the queue has 8")


@pytest.mark.parametrize("step", [9, 1000, -1, -8])
def test_q05_an_available_index_that_jumps_or_goes_back_breaks(kind: type[SplitRig], step: int) -> None:
    rig = kind(8)
    rig.available[2:4] = (step & 0xFFFF).to_bytes(2, "little")
    broken(rig, f"available index jumped by {step & 0xFFFF}")


@pytest.mark.parametrize("direct", [0, 1, 3])
def test_q12_direct_descriptors_may_end_in_one_indirect_table(kind: type[SplitRig], direct: int) -> None:
    rig = kind(8)
    for index in range(direct):
        rig.describe(index, len=2, flags=NEXT, next=index + 1)
    size = rig.table(BUFFERS + 0x100, (BUFFERS, 3, 0), (BUFFERS, 4, WRITE))
    rig.describe(direct, BUFFERS + 0x100, size, INDIRECT)
    rig.offer(0)
    chain = pop(rig)
    assert (chain.head, chain.readable_size, chain.writable_size) == (0, 2 * direct + 3, 4)


def test_q12_direct_and_indirect_descriptors_count_together(kind: type[SplitRig]) -> None:
    rig = kind(2)
    rig.describe(0, flags=NEXT, next=1)
    rig.describe(1, BUFFERS + 0x100, rig.table(BUFFERS + 0x100, (BUFFERS, 1, 0), (BUFFERS, 1, 0)), INDIRECT)
    rig.offer(0)
    broken(rig, "is longer than the queue")


def test_used_entries_lie_where_the_specification_says(kind: type[SplitRig]) -> None:
    rig = kind(4)
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


def test_q14_an_indirect_chain_may_skip_entries_of_its_table(kind: type[SplitRig]) -> None:
    rig = kind(8)
    size = rig.raw_table(BUFFERS + 0x100, (BUFFERS, 1, NEXT, 2), (0, 0, 0, 0), (BUFFERS, 2, 0, 0))
    rig.describe(0, BUFFERS + 0x100, size, INDIRECT)
    rig.offer(0)
    assert pop(rig).readable_size == 3


def test_q01_a_loop_in_an_indirect_table_breaks(kind: type[SplitRig]) -> None:
    rig = kind(8)
    rig.describe(0, BUFFERS, rig.raw_table(BUFFERS, (BUFFERS, 1, NEXT, 0)), INDIRECT)
    rig.offer(0)
    broken(rig, "is longer than the queue")
