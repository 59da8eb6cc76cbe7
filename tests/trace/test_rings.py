"""Requests and completions of real drivers, as a bystander sees them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tests.drivers.devices import Disk
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.testing import leaving_nothing
from vhostuser.trace.event import START, Offered, Used
from vhostuser.virtio.block import HEADER, SECTOR, BlockRequest

from .through import Observed, followed

EACH_FORMAT = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
DIRECT_OR_NOT = pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
IN_ORDER_OR_NOT = pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])


@EACH_FORMAT
@DIRECT_OR_NOT
@IN_ORDER_OR_NOT
def test_a_request_is_seen_whole(packed: bool, indirect: bool, in_order: bool) -> None:
    with followed(Observed(), features=FEATURES, packed=packed, in_order=in_order) as (frontend, seen):
        frontend.share_memory(1 << 20)
        driver = BlockDriver(frontend, size=16, indirect=indirect)
        assert driver.read(3, 2) == (3).to_bytes(4, "little") * 128 + (4).to_bytes(4, "little") * 128
        seen.until(1)
        (offered,), (used,) = seen.offered, seen.used
        assert offered.start == HEADER.pack(BlockRequest.IN, 0, 3)
        assert [(each.len, each.writable) for each in offered.buffers] == [(16, False), (2 * SECTOR, True), (1, True)]
        assert (used.queue, used.head) == (0, offered.head)
        assert used.written == 2 * SECTOR + 1
        assert used.start == (3).to_bytes(4, "little") * 32
        assert used.end == b"\0"
        assert 0 < used.after == used.at - offered.at
        assert seen.remarks == []


@EACH_FORMAT
@DIRECT_OR_NOT
@IN_ORDER_OR_NOT
def test_many_requests_are_all_seen_round_after_round(packed: bool, indirect: bool, in_order: bool) -> None:
    """Each of them once, in order, though the ring goes round nine times and indices are reused at once."""
    with followed(Observed(), features=FEATURES, packed=packed, in_order=in_order) as (frontend, seen):
        frontend.share_memory(1 << 20)
        driver = BlockDriver(frontend, size=8, indirect=indirect)
        count, sectors = 0, [(number * 7) % 200 for number in range(72 if indirect else 24)]
        for sector in sectors:
            driver.write(sector, bytes([sector]) * SECTOR)
            seen.until(count := count + 1)
        assert [HEADER.unpack(each.start[:16]) for each in seen.offered] == [(BlockRequest.OUT, 0, each) for each in sectors]
        assert [each.start[16:] for each in seen.offered] == [bytes([each]) * (START - 16) for each in sectors]
        assert [(each.written, each.start, each.end) for each in seen.used] == [(1, b"\0", b"\0")] * len(sectors)
        assert all(each.after > 0 for each in seen.used)
        kinds = [type(event) for event in seen.events]
        assert all(before is not after for before, after in pairwise(kinds)), "one at a time"
        assert seen.remarks == []


@EACH_FORMAT
def test_requests_in_flight_together_are_told_apart(packed: bool) -> None:
    with followed(Observed(), features=FEATURES, packed=packed) as (frontend, seen):
        frontend.share_memory(1 << 20)
        driver = BlockDriver(frontend, size=256)
        assert list(driver.read_many([(sector, 1) for sector in range(40)]))
        seen.until(40)
        assert sorted(HEADER.unpack(each.start)[2] for each in seen.offered) == list(range(40))
        offered = iter(seen.offered)
        for used in seen.used:
            begun = next(offered)
            assert used.head == begun.head
            assert used.start[:4] in (b"", HEADER.unpack(begun.start)[2].to_bytes(4, "little"))


def test_what_comes_and_goes_too_quickly_is_counted() -> None:
    """The sum is right however slow the bystander was: seen, or said to be lost."""
    count = 3000
    with followed(Disk(), features=FEATURES) as (frontend, seen):
        frontend.share_memory(1 << 20)
        driver = BlockDriver(frontend, size=8)
        for number in range(count):
            driver.read(number % 200, 1)
    lost = sum(int(text.split()[3]) for text in seen.remarks if text.startswith("lost: queue 0: "))
    assert len(seen.offered) + lost == count
    assert 0 < len(seen.used) <= len(seen.offered)
    known = {HEADER.pack(BlockRequest.IN, 0, sector): sector for sector in range(200)}
    assert all(each.start in known or not each.start for each in seen.offered)


@EACH_FORMAT
def test_nothing_is_left_of_a_connection(packed: bool) -> None:
    with leaving_nothing():
        for _ in range(3):
            with followed(Disk(), features=FEATURES, packed=packed) as (frontend, seen):
                frontend.share_memory(1 << 20)
                BlockDriver(frontend, size=8).read(0, 1)
            assert Counter(type(event) for event in seen.events if not isinstance(event, Offered | Used)).total() <= 1


@EACH_FORMAT
def test_two_queues_are_two(packed: bool) -> None:
    with followed(Observed(), features=FEATURES, packed=packed) as (frontend, seen):
        frontend.share_memory(1 << 20)
        first, second = BlockDriver(frontend, 0, 8), BlockDriver(frontend, 1, 8)
        first.read(1, 1)
        second.read(2, 1)
        seen.until(2)
        assert [(each.queue, HEADER.unpack(each.start)[2]) for each in seen.offered] == [(0, 1), (1, 2)]
        assert [each.queue for each in seen.used] == [0, 1]
