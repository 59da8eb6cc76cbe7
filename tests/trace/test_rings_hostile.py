"""Rings and memory that are nonsense cost a bystander one remark, and that ring until it starts anew; never more."""

from __future__ import annotations

import gc
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, WRITE, SplitRig
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, SingleRegion, VringAddr, VringState
from vhostuser.testing import sparse_file, usage
from vhostuser.trace.event import Offered, Used
from vhostuser.trace.ring_chain import STEPS
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.numbers import Feature

from .stage import FORMATS, RING, SPACE, USER, Stage, heads, remarks, shrink

TABLE = BUFFERS + 0x100
GIVEN_UP = "note: queue 0 is not followed until it is started anew: "


@pytest.fixture(params=FORMATS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(request.param)
    yield made
    made.close()


@pytest.fixture
def split() -> Iterator[Stage]:
    made = Stage("split")
    yield made
    made.close()


@pytest.fixture
def packed() -> Iterator[Stage]:
    made = Stage("packed")
    yield made
    made.close()


def gives_up(stage: Stage, reason: str) -> None:
    """One remark, nothing more while the ring goes on, and all is well once it starts anew."""
    events = stage.look()
    assert remarks(events) == [GIVEN_UP + reason]
    assert stage.look() == []
    stage.begin_again()
    stage.rig.give((BUFFERS, 4, 0))
    assert heads(stage.look()) == [("Offered", 0)]


# What is honest


def test_a_request_and_its_answer(stage: Stage) -> None:
    stage.rig.buffers[:4] = b"ping"
    head = stage.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    (offered,) = stage.look()
    assert isinstance(offered, Offered)
    assert (offered.head, offered.start) == (head, b"ping")
    stage.rig.buffers[8:12] = b"pong"
    stage.answer(written=4)
    (used,) = stage.look()
    assert isinstance(used, Used)
    assert (used.head, used.written, used.start, used.end) == (head, 4, b"pong", b"g")
    assert used.after == used.at - offered.at > 0


def test_what_was_given_back_is_told_before_what_was_offered_then(stage: Stage) -> None:
    """A look finds both, and the new request may have the old one's head."""
    stage.rig.give((BUFFERS, 4, 0))
    assert [kind for kind, _ in heads(stage.look())] == ["Offered"]
    stage.answer()
    stage.rig.give((BUFFERS + 0x1000, 4, 0))
    assert [kind for kind, _ in heads(stage.look())] == ["Used", "Offered"]


def test_an_indirect_request(stage: Stage) -> None:
    size = stage.rig.table(TABLE, (BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    stage.rig.give((TABLE, size, INDIRECT))
    (offered,) = stage.look()
    assert isinstance(offered, Offered)
    assert [(each.address, each.len, each.writable) for each in offered.buffers] == [
        (BUFFERS, 4, False),
        (BUFFERS + 8, 4, True),
    ]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("back", [3, 1, 0])
def test_indices_wrap(form: str, back: int) -> None:
    last = 1 << 16 if form == "split" else 16
    stage = Stage(form, start=last - back if back else 0)
    for _ in range(20):
        stage.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
        assert [kind for kind, _ in heads(stage.look())] == ["Offered"]
        stage.answer()
        assert [kind for kind, _ in heads(stage.look())] == ["Used"]
    assert remarks(stage.events) == []
    stage.close()


def test_what_was_in_progress_before_is_given_back_unseen(split: Stage) -> None:
    """The ring goes on at 3, the device has two requests of before: their ends are told, with what they were unknown."""
    split.stop()
    split.rig.set_up(3)
    split.rig.used[2:4] = (1).to_bytes(2, "little")
    split.lay(3)
    assert split.look() == []
    split.rig.used[12:20] = (5).to_bytes(4, "little") + (9).to_bytes(4, "little")
    split.rig.used[2:4] = (2).to_bytes(2, "little")
    (used,) = split.look()
    assert isinstance(used, Used)
    assert (used.head, used.written, used.start, used.after) == (5, 9, b"", -1)


@pytest.mark.parametrize("form", FORMATS)
def test_one_used_entry_ends_a_batch_in_order(form: str) -> None:
    stage = Stage(form, features=1 << Feature.IN_ORDER)
    for number in range(3):
        stage.rig.give((BUFFERS + 16 * number, 4 + number, WRITE))
    chains = [stage.rig.device.pop() for _ in range(3)]
    stage.look()
    last = chains[-1]
    assert last
    if form == "split":
        stage.rig.used[4:12] = last.head.to_bytes(4, "little") + (2).to_bytes(4, "little")
        stage.rig.used[2:4] = (3).to_bytes(2, "little")
    else:
        stage.rig.descriptors[8:16] = b"".join(
            (value).to_bytes(size, "little") for value, size in ((2, 4), (last.head, 2), (1 << 15 | 1 << 7 | WRITE, 2))
        )
    used = [each for each in stage.look() if isinstance(each, Used)]
    assert [(each.head, each.written) for each in used] == [(0, 4), (1, 5), (2, 2)]
    stage.rig.next = 3
    stage.rig.give((BUFFERS, 4, 0))
    assert [kind for kind, _ in heads(stage.look())] == ["Offered"]
    assert remarks(stage.events) == []
    stage.close()


# What can't be seen


def test_requests_that_were_overwritten_are_counted(split: Stage) -> None:
    for _ in range(20):
        split.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
        split.answer()
    events = split.look()
    (lost,) = remarks(events)
    count = int(lost.removeprefix("lost: queue 0: ").split()[0])
    assert count + sum(isinstance(each, Offered) for each in events) == 20
    assert lost.endswith(" requests came and went between two looks")
    split.rig.give((BUFFERS, 4, 0))
    assert [kind for kind, _ in heads(split.look())] == ["Offered"]


def test_a_request_that_a_later_one_lies_over_is_not_made_up(split: Stage) -> None:
    """The second request has the first one's descriptor: of the first nothing is known any more."""
    assert isinstance(split.rig, SplitRig)
    for number in range(2):
        split.rig._free = 0
        split.rig.buffers[:4] = bytes([number]) * 4
        split.rig.give((BUFFERS, 4, 0))
        split.answer(written=number)
    events = split.look()
    assert remarks(events) == ["lost: queue 0: 1 requests came and went between two looks"]
    (offered,) = (each for each in events if isinstance(each, Offered))
    (used,) = (each for each in events if isinstance(each, Used))
    assert (offered.start, used.written, used.after) == (b"\1\1\1\1", 1, -1)


def test_an_answer_that_a_later_request_lies_over_is_left_out(stage: Stage) -> None:
    stage.rig.give((BUFFERS, 4, WRITE))
    stage.look()
    stage.rig.buffers[:4] = b"pong"
    stage.answer(written=4)
    assert stage.look(times=1) == []
    stage.rig.buffers[:4] = b"next"
    stage.rig.give((BUFFERS, 4, 0))
    used, offered = stage.look()
    assert isinstance(used, Used)
    assert isinstance(offered, Offered)
    assert (used.written, used.start, used.end, offered.start) == (4, b"pong"[:0], b"", b"next")


def test_a_packed_request_that_came_and_went_is_counted(packed: Stage) -> None:
    packed.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    packed.answer()
    assert remarks(packed.look()) == ["lost: queue 0: 1 requests or more came and went between two looks"]
    packed.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    packed.look()
    packed.answer()
    packed.look()
    assert heads(packed.events) == [("Offered", 2), ("Used", 2)]


@pytest.mark.parametrize("unseen", range(1, 40))
def test_a_packed_ring_is_found_again_after_any_number_of_rounds(unseen: int) -> None:
    stage = Stage("packed")
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    for _ in range(unseen):
        stage.answer()
        stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    del stage.events[:]
    for _ in range(20):
        stage.answer()
        stage.rig.give((BUFFERS + 16, 4, 0))
        stage.look()
    kinds = Counter(kind for kind, _ in heads(stage.events)[-30:])
    assert kinds == {"Used": 15, "Offered": 15}, "in step again"
    assert not any(text.startswith("note") for text in remarks(stage.events))
    stage.close()


# Nonsense in split rings


@pytest.mark.parametrize("loop", ["self", "pair", "all"])
def test_q01_a_loop(split: Stage, loop: str) -> None:
    for index in range(8):
        split.rig.describe(index, flags=NEXT, next={"self": index, "pair": index ^ 1, "all": (index + 1) % 8}[loop])
    assert isinstance(split.rig, SplitRig)
    split.rig.offer(0)
    gives_up(split, "the chain at descriptor 0 loops")


@pytest.mark.parametrize("following", [8, 9, 65535])
def test_q03_a_chain_that_continues_outside(split: Stage, following: int) -> None:
    assert isinstance(split.rig, SplitRig)
    split.rig.describe(0, flags=NEXT, next=following)
    split.rig.offer(0)
    gives_up(split, f"descriptor 0 continues at {following}, the queue has 8")


@pytest.mark.parametrize("head", [8, 9, 65535])
def test_q04_a_head_outside(split: Stage, head: int) -> None:
    assert isinstance(split.rig, SplitRig)
    split.rig.offer(head)
    gives_up(split, f"a chain starts at descriptor {head}, the queue has 8")


@pytest.mark.parametrize("step", [9, 1000, 0x8000, 0xFFF0])
def test_q05_an_available_index_that_jumps(split: Stage, step: int) -> None:
    split.rig.available[2:4] = step.to_bytes(2, "little")
    gives_up(split, f"available index {step} is {step} ahead of used index 0, the queue has 8 entries")


@pytest.mark.parametrize("head", [8, 1 << 31])
@pytest.mark.parametrize("in_order", [False, True])
def test_a_device_that_gives_back_what_is_none(head: int, in_order: bool) -> None:
    stage = Stage("split", features=in_order << Feature.IN_ORDER)
    stage.rig.give((BUFFERS, 4, 0))
    stage.rig.used[4:8] = head.to_bytes(4, "little")
    stage.rig.used[2:4] = (1).to_bytes(2, "little")
    assert remarks(stage.look())[0].startswith(f"{GIVEN_UP}the device gave back chain {head}, ")
    stage.close()


@pytest.mark.parametrize(
    ("entries", "size", "reason"),
    [
        ([(BUFFERS, 1, NEXT, 0)], None, "a chain in an indirect table is longer than the table or the queue, or loops"),
        ([(BUFFERS, 1, NEXT, 1)], None, "entry 0 of an indirect table continues at 1, it has 1"),
        ([(BUFFERS, 16, INDIRECT, 0)], None, "an indirect descriptor inside an indirect table"),
        ([], 0, "an indirect table of 0 bytes"),
        ([], 17, "an indirect table of 17 bytes"),
        ([], 16 * 9, "an indirect table of 144 bytes"),
        ([], 1 << 31, "an indirect table of 2147483648 bytes"),
    ],
)
def test_q06_a_table_that_is_none(
    split: Stage, entries: list[tuple[int, int, int, int]], size: int | None, reason: str
) -> None:
    length = split.rig.raw_table(TABLE, *entries)
    split.rig.give((TABLE, length if size is None else size, INDIRECT))
    gives_up(split, reason)


def test_q06_a_table_that_is_nowhere(stage: Stage) -> None:
    stage.rig.give((1 << 50, 16, INDIRECT))
    gives_up(stage, "an indirect table is nowhere: no guest memory at 0x4000000000000")


# Nonsense in packed rings


def test_q01_a_packed_chain_without_an_end(packed: Stage) -> None:
    for index in range(8):
        packed.rig.describe(index, flags=NEXT)
    gives_up(packed, "a chain at descriptor 0 is longer than the queue has room for")


def test_a_packed_chain_whose_rest_is_not_there(packed: Stage) -> None:
    packed.rig.describe(0, flags=NEXT)
    gives_up(packed, "a chain wants descriptor 1, which is not available")


def test_a_packed_table_behind_a_direct_descriptor(packed: Stage) -> None:
    packed.rig.describe(0, flags=NEXT)
    packed.rig.describe(1, flags=INDIRECT)
    gives_up(packed, "an indirect descriptor follows a direct one")


# Any bytes at all


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_survived(form: str, seed: int) -> None:
    """Rings of noise, of noise in valid indices, and valid ones with some bytes flipped."""
    dice = random.Random(seed)
    stage = Stage(form, size=8)
    for _ in range(150):
        stage.begin_again()
        before = len(remarks(stage.events))
        for _ in range(6):
            part = dice.choice(stage.rig.parts)
            start = dice.randrange(part.nbytes)
            part[start : start + 2] = dice.randbytes(len(part[start : start + 2]))
            if dice.random() < 0.5:
                stage.rig.give((BUFFERS + dice.randrange(SPACE), dice.randrange(1 << 12), dice.choice((0, WRITE, INDIRECT))))
            stage.follower.look()
        assert len([text for text in remarks(stage.events)[before:] if text.startswith("note")]) <= 1
        del stage.events[:]
    stage.close()


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_chains_in_the_largest_ring_take_no_time(form: str) -> None:
    """2,048 requests of 2,048 descriptors each are four million: a look follows some thousand of them."""
    size = 1 << 11
    stage = Stage(form, size=size)
    table = stage.rig.table(TABLE, *[(BUFFERS, 0, 0)] * size)
    for _ in range(size):
        stage.rig.give((TABLE, table, INDIRECT))
    for _ in range(3):
        events = stage.look(times=1)
        assert sum(len(each.buffers) for each in events if isinstance(each, Offered)) <= STEPS + 2 * size
    assert any(isinstance(each, Offered) for each in stage.events)
    stage.close()


# Memory


def test_a_ring_that_shrinks_away(stage: Stage) -> None:
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    shrink(stage.ring)
    (said,) = remarks(stage.look())
    assert said.startswith(GIVEN_UP)
    assert "not there" in said
    assert stage.look() == []


def test_buffers_that_shrink_away_are_empty(stage: Stage) -> None:
    assert stage.look() == []
    stage.rig.give((BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    shrink(stage.memory)
    (offered,) = stage.look()
    assert isinstance(offered, Offered)
    assert offered.start == b""
    stage.answer()
    (used,) = stage.look()
    assert isinstance(used, Used)
    assert (used.start, used.end) == (b"", b"")


@pytest.mark.parametrize("address", [0, 1 << 50, BUFFERS + SPACE, (1 << 64) - 2])
def test_a_buffer_that_is_nowhere_is_shown_so(stage: Stage, address: int) -> None:
    stage.rig.give((address, 4, 0))
    (offered,) = stage.look()
    assert isinstance(offered, Offered)
    assert (offered.buffers[0].address, offered.start) == (address, b"")


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (MemoryRegion(0, 2 * SPACE, 0, 0), "memory at 0x0: 0x40000 bytes at 0x0 are not in a file of 0x20000"),
        (MemoryRegion(0, SPACE, 0, 4096), "memory at 0x0: 0x20000 bytes at 0x1000 are not in a file of 0x20000"),
        (MemoryRegion(0, 0, 0, 0), "memory at 0x0: 0x0 bytes at 0x0 are not in a file of 0x20000"),
        (MemoryRegion(0, (1 << 64) - 1, 0, 1), "are not in a file"),
    ],
)
def test_memory_that_is_not_there_is_not_followed(split: Stage, region: MemoryRegion, reason: str) -> None:
    split.tell(Q.SET_MEM_TABLE, MemoryTable([region]), split.memory)
    (said,) = remarks(split.look())
    assert said.startswith("note: guest memory at 0x0 can't be followed: ")
    assert reason in said


def test_memory_that_is_no_file_is_not_followed(split: Stage) -> None:
    with OwnedFd(os.eventfd(0)) as fd:
        split.tell(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 8, 0, 0)]), fd)
    assert remarks(split.look()) == ["note: guest memory at 0x0 can't be followed: memory at 0x0 is no file"]


def test_a_table_with_fewer_fds_than_regions(split: Stage) -> None:
    regions = [MemoryRegion(BUFFERS, SPACE, 1 << 32, 0), MemoryRegion(RING, SPACE, USER, 0)]
    split.tell(Q.SET_MEM_TABLE, MemoryTable(regions), split.memory)
    (said,) = remarks(split.look())
    assert said.startswith(f"{GIVEN_UP}it is outside guest memory: no region has ")


@pytest.mark.parametrize("size", [0, 3, 7, 65536, 1 << 31])
def test_a_ring_of_no_size(split: Stage, size: int) -> None:
    split.stop()
    split.lay()
    split.tell(Q.SET_VRING_NUM, VringState(0, size))
    assert len(remarks(split.look())) == (size in (3, 7))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("base", [1 << 16, (1 << 32) - 1, 9])
def test_a_base_that_is_none(form: str, base: int) -> None:
    stage = Stage(form)
    stage.stop()
    stage.tell(Q.SET_VRING_BASE, VringState(0, base))
    stage.lay()
    stage.rig.give((BUFFERS, 4, 0))
    assert len(remarks(stage.look())) == 1
    stage.close()


def test_addresses_that_are_none(split: Stage) -> None:
    split.stop()
    split.tell(Q.SET_VRING_ADDR, VringAddr(0, 0, (1 << 64) - 16, 1, 2, 3))
    split.tell(Q.SET_VRING_KICK, U64(0))
    (said,) = remarks(split.look())
    assert said.startswith(f"{GIVEN_UP}it is outside guest memory: ")


def test_messages_that_are_wrong_say_nothing(split: Stage) -> None:
    for request in (Q.SET_MEM_TABLE, Q.SET_VRING_ADDR, Q.SET_VRING_KICK, Q.SET_FEATURES, Q.GET_VRING_BASE):
        for reply in (False, True):
            split.tell(request, None, reply=reply)
    split.rig.give((BUFFERS, 4, 0))
    assert heads(split.look()) == [("Offered", 0)]


# Changes


def test_regions_come_and_go_one_by_one(stage: Stage) -> None:
    body = SingleRegion(BUFFERS, SPACE, 1 << 32, 0)
    stage.tell(Q.REM_MEM_REG, body)
    stage.rig.buffers[:4] = b"ping"
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    stage.tell(Q.ADD_MEM_REG, body, stage.memory)
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    assert [each.start for each in stage.events if isinstance(each, Offered)] == [b"", b"ping"]


def test_a_ring_moves_while_it_runs(stage: Stage) -> None:
    """Another memory table with other user addresses, and SET_VRING_ADDR as QEMU sends it to begin to log."""
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    regions = [MemoryRegion(BUFFERS, SPACE, 1 << 33, 0), MemoryRegion(RING, SPACE, 2 * USER, 0)]
    stage.tell(Q.SET_MEM_TABLE, MemoryTable(regions), stage.memory, stage.ring)
    stage.place(2 * USER)
    stage.answer()
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    assert [kind for kind, _ in heads(stage.events)] == ["Offered", "Used", "Offered"] or [
        kind for kind, _ in heads(stage.events)
    ] == ["Offered", "Offered", "Used"]
    assert remarks(stage.events) == []


@pytest.mark.parametrize("at", [RING, USER])
def test_gpa_addresses_are_guest_addresses(at: int) -> None:
    """Bit 21 meant shared memory once, with user addresses: what is nowhere by the one is looked for by the other."""
    stage = Stage()
    stage.stop()
    stage.tell(Q.SET_PROTOCOL_FEATURES, U64(1 << ProtocolFeature.GPA_ADDRESSES))
    stage.lay(0, at=at)
    stage.rig.give((BUFFERS, 4, 0))
    assert heads(stage.look()) == [("Offered", 0)]
    stage.close()


@pytest.mark.parametrize(
    ("request_", "body"), [(Q.RESET_DEVICE, None), (Q.RESET_OWNER, None), (Q.SET_STATUS, U64(0)), (Q.POSTCOPY_LISTEN, None)]
)
def test_a_reset_ends_it(stage: Stage, request_: Q, body: U64 | None) -> None:
    stage.look()
    stage.tell(request_, body)
    stage.look()
    stage.rig.give((BUFFERS, 4, 0))
    assert heads(stage.look()) == []


def test_pages_that_a_migration_has_not_brought_are_not_touched(stage: Stage) -> None:
    stage.tell(Q.POSTCOPY_LISTEN)
    stage.share()
    stage.lay(0)
    stage.rig.give((BUFFERS, 4, 0))
    assert remarks(stage.look()) == [
        "note: rings are not followed any more: the guest's memory is being migrated (post-copy)"
    ]
    assert stage.look() == []


def test_what_a_ring_did_last_is_seen_as_it_stops(stage: Stage) -> None:
    stage.rig.give((BUFFERS, 4, 0))
    stage.look()
    stage.answer()
    stage.stop()
    assert [kind for kind, _ in heads(stage.events)] == ["Offered", "Used"]


def test_messages_without_end_keep_neither_fds_nor_mappings() -> None:
    stage, region = Stage(), sparse_file(SPACE)
    gc.collect()
    before = usage()
    for _ in range(200):
        stage.tell(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, SPACE, 0, 0)] * 8), *[region] * 8)
        assert usage().fds < before.fds + 600
    stage.look()
    assert before.mappings < usage().mappings <= before.mappings + 8, "the kernel may join some of them"
    stage.follower.close()
    assert usage().mappings <= before.mappings
    stage.close()
    region.close()
