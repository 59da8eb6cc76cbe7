"""The arena's blocks: how large, where, and that all of it can be handed out and comes back whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest

from vhostuser.errors import LocalProtocolError
from vhostuser.memory.added import AddedBlock, AddedMemory
from vhostuser.memory.arena import Arena

PAGE = 4096
SIZES = [16, 17, 31, 32, 48, 112, 1008, 1024, PAGE, PAGE + 16, 3 * PAGE - 1]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(PAGE)
    yield made
    made.close()


@pytest.mark.parametrize("size", SIZES)
def test_an_arena_is_handed_out_to_its_last_16_bytes_and_comes_back_whole(size: int) -> None:
    arena, most = Arena(size), size // 16
    assert arena.free == 16 * most
    for _ in range(2):
        taken = [arena.take(1) for _ in range(most)]
        assert sorted(taken) == [16 * at for at in range(most)]
        assert arena.free == 0
        with pytest.raises(MemoryError, match="1 bytes of shared memory wanted, 0 are left"):
            arena.take(1)
        for start in taken:
            arena.give_back(start)
        assert arena.free == 16 * most
        largest = 1 << size.bit_length() - 1
        assert arena.take(largest) == 0
        assert arena.free == 16 * most - largest
        with pytest.raises(MemoryError):
            arena.take(largest)
        arena.give_back(0)
    arena.close()


@pytest.mark.parametrize(
    ("size", "align", "block"),
    [
        (0, 16, 16),
        (1, 1, 16),
        (16, 16, 16),
        (17, 16, 32),
        (32, 16, 32),
        (33, 16, 64),
        (1, 64, 64),
        (64, 64, 64),
        (65, 64, 128),
        (100, 1024, 1024),
        (PAGE, 16, PAGE),
    ],
)
def test_a_block_is_a_power_of_two_at_a_multiple_of_itself(arena: Arena, size: int, align: int, block: int) -> None:
    for before in (0, 1):
        for _ in range(before):
            arena.take(1)
        if block == PAGE and before:
            continue
        free = arena.free
        start = arena.take(size, align)
        assert free - arena.free == block
        assert start % block == 0
        arena.give_back(start)
        assert arena.free == free


def test_blocks_of_any_order_come_back_to_be_one(arena: Arena) -> None:
    for order in permutations(range(4)):
        blocks = [arena.take(PAGE // 4) for _ in range(4)]
        for at in order:
            arena.give_back(blocks[at])
        arena.give_back(arena.take(PAGE))


def test_halves_of_different_blocks_are_not_joined(arena: Arena) -> None:
    blocks = sorted(arena.take(PAGE // 4) for _ in range(4))
    arena.give_back(blocks[1])
    arena.give_back(blocks[2])
    with pytest.raises(MemoryError, match="2048 bytes of shared memory wanted, 2048 are left, and not in one block"):
        arena.take(PAGE // 2)
    arena.give_back(blocks[0])
    assert arena.take(PAGE // 2) == 0


def test_what_is_taken_is_zeroed_and_no_more(arena: Arena) -> None:
    arena.view[:] = b"\xff" * PAGE
    start = arena.take(5)
    assert bytes(arena.view) == b"\xff" * start + bytes(5) + b"\xff" * (PAGE - start - 5)


def test_clear_takes_all_back(arena: Arena) -> None:
    start = arena.take(PAGE)
    arena.clear()
    assert arena.free == PAGE
    with pytest.raises(LocalProtocolError, match="no shared memory is taken"):
        arena.give_back(start)


def test_an_added_block_is_behind_all_others_with_a_page_between() -> None:
    added = AddedMemory()
    blocks: list[AddedBlock] = []
    for size in (PAGE, 3 * PAGE, PAGE):
        block = added.make(size, 10 * PAGE)
        end = max([10 * PAGE, *(each.guest_addr + each.view.nbytes for each in blocks)])
        assert (block.guest_addr, block.view.nbytes) == (end + PAGE, size)
        assert (block.region.user_addr, block.region.size, block.region.mmap_offset) == (end + PAGE, size, 0)
        added.keep(block)
        blocks.append(block)
        assert added.blocks == blocks
    added.forget(blocks[0])
    assert added.blocks == blocks[1:]
    far = added.make(PAGE, 100 * PAGE)
    assert far.guest_addr == 101 * PAGE
    far.close()
    added.close()
    assert added.blocks == []
