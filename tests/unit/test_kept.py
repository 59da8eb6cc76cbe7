"""What a ring knows of the requests that its device keeps."""

from __future__ import annotations

import sys

import pytest

from vhostuser.kept import Kept
from vhostuser.memory.guest import GuestMemory
from vhostuser.virtio.chain import DescriptorChain

MEMORY = GuestMemory([])


def chains(count: int) -> list[DescriptorChain]:
    return [DescriptorChain(head, (), ()) for head in range(count)]


def heads(kept: Kept) -> list[int]:
    return [chain.head for chain, _ in kept.take()]


def kept_of(rows: list[DescriptorChain], *, in_order: bool) -> Kept:
    kept = Kept()
    kept.in_order = in_order
    for chain in rows:
        kept.add(chain, MEMORY)
    return kept


@pytest.mark.parametrize(("in_order", "wanted"), [(False, [[2], [1], [0, 3]]), (True, [[], [], [0, 1, 2, 3]])])
def test_in_order_a_request_waits_for_those_before_it(in_order: bool, wanted: list[list[int]]) -> None:
    kept = kept_of(rows := chains(4), in_order=in_order)
    for batch, expected in zip(([2], [1], [0, 3]), wanted, strict=True):
        assert kept.holds is in_order
        for head in batch:
            kept.complete(rows[head])
        assert heads(kept) == expected
    assert (len(kept), kept.holds) == (0, False)


@pytest.mark.parametrize("in_order", [False, True])
def test_what_is_not_kept_any_more_is_completed_in_vain_and_forgotten(in_order: bool) -> None:
    rows = chains(3)
    before = [sys.getrefcount(chain) for chain in rows]
    kept = kept_of(rows, in_order=in_order)
    kept.complete(rows[1])
    assert heads(kept) == ([] if in_order else [1])
    kept.clear()
    for head in (*range(3), *range(3)):
        kept.complete(rows[head])
    assert heads(kept) == []
    assert [sys.getrefcount(chain) for chain in rows] == before
    kept.add(rows[0], MEMORY)
    kept.complete(rows[0])
    assert heads(kept) == [0]


def test_a_request_may_be_completed_before_it_is_kept() -> None:
    kept = kept_of(rows := chains(2), in_order=True)
    late = DescriptorChain(7, (), ())
    for chain in (late, *rows):
        kept.complete(chain)
    kept.add(late, MEMORY)
    assert heads(kept) == [0, 1, 7]
