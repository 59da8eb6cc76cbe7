"""A region at its borders: small tables against their cells, ranges at the end of all addresses, quotas overdrawn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.halves import HALVES, table_of, using
from tests.relations import PAGE
from vhostuser.errors import RemoteProtocolError
from vhostuser.memory.table import new_quota
from vhostuser.protocol.numbers import END_OF_ADDRESSES, END_OF_FILE_OFFSETS
from vhostuser.protocol.payloads import Mmap, ShmemConfig
from vhostuser.protocol.regions import (
    DEVICE_QUOTA,
    LARGEST_REGION,
    PROCESS_QUOTA,
    Mapping,
    MappingTable,
    check_map,
    check_sizes,
    check_unmap,
    remainders,
)

CELLS = 7


def tables(start: int = 0, free: int = 3) -> Iterator[tuple[Mapping, ...]]:
    """All ways to lay up to three mappings into the cells from `start` on, in order."""
    yield ()
    if free:
        for first in range(start, CELLS):
            for end in range(first + 1, CELLS + 1):
                for rest in tables(end, free - 1):
                    yield (Mapping(first, end - first, 10 * first, True), *rest)


@pytest.mark.parametrize("half", HALVES)
def test_sh02_a_table_answers_for_each_range_as_its_cells_do(half: str) -> None:
    for laid in tables():
        table = table_of(half)
        for mapping in reversed(laid):
            table.insert(mapping)
        assert list(table) == list(laid)
        for start in range(CELLS):
            for end in range(start, CELLS + 1):
                met = [each for each in laid if each.shm_offset < end and each.end > start]
                assert table.covering(start, end - start) == met
                if start == end:
                    continue  # an empty range is refused before anybody asks whether it overlaps
                assert table.overlapping(start, end - start) == (met[0] if met else None)
                same = next((each for each in laid if each[:2] == (start, end - start)), None)
                assert table.exact(start, end - start) == same
                if isinstance(table, MappingTable):
                    assert table.fits(start, end - start) is not bool(met)


@pytest.mark.parametrize("half", HALVES)
def test_sh33_what_is_removed_leaves_its_neighbours_and_their_seals(half: str) -> None:
    laid = [Mapping(at, 1, 0, False) for at in range(5)]
    for gone in laid:
        table = table_of(half)
        for mapping in laid:
            table.insert(mapping, sealed=mapping.shm_offset % 2 == 0)
        table.remove(gone)
        left = [mapping for mapping in laid if mapping is not gone]
        assert (len(table), list(table)) == (4, left)
        assert [table.is_sealed(mapping) for mapping in left] == [mapping.shm_offset % 2 == 0 for mapping in left]
        table.insert(gone)
        assert not table.is_sealed(gone)
        table.clear()
        assert (len(table), list(table), table.is_sealed(laid[0])) == (0, [], False)


def test_sh07_a_range_may_end_where_the_addresses_do_and_no_later() -> None:
    table = MappingTable()
    check_map(Mmap(0, 0, END_OF_ADDRESSES - PAGE, PAGE), END_OF_ADDRESSES, table, RemoteProtocolError)
    for check in (check_map, check_unmap):
        with pytest.raises(RemoteProtocolError, match="wraps past") as caught:
            check(Mmap(0, 0, END_OF_ADDRESSES - PAGE, 2 * PAGE), 2 * END_OF_ADDRESSES, table, RemoteProtocolError)
        assert (caught.value.field, caught.value.limit) == ("shm_offset", END_OF_ADDRESSES)


def test_sh07_a_range_that_wraps_is_told_so_where_no_region_is() -> None:
    with pytest.raises(RemoteProtocolError, match="wraps past"):
        check_map(Mmap(0, 0, END_OF_ADDRESSES - PAGE, 2 * PAGE), 0, MappingTable(), RemoteProtocolError)


def test_sh08_a_file_range_ends_below_the_largest_offset() -> None:
    for pages in (1, 2, 3):
        last = END_OF_FILE_OFFSETS - pages * PAGE
        check_map(Mmap(0, last - PAGE, 0, pages * PAGE), 4 * PAGE, MappingTable(), RemoteProtocolError)
        with pytest.raises(RemoteProtocolError, match="largest file offset"):
            check_map(Mmap(0, last, 0, pages * PAGE), 4 * PAGE, MappingTable(), RemoteProtocolError)


@pytest.mark.parametrize("half", HALVES)
def test_sh26_a_quota_that_is_overdrawn_has_no_room(half: str) -> None:
    with using(half):
        process = new_quota("process", 4)
        device = new_quota("device", 2, process)
    assert (device.name, device.limit, device.used) == ("device", 2, 0)
    device.add(3)
    assert device.exhausted() is device
    device.add(-1)
    assert device.exhausted() is device
    device.add(-1)
    assert device.exhausted() is None
    process.add(4)
    assert (process.used, device.used) == (5, 1)
    assert device.exhausted() is process


def test_sh26_a_device_has_a_quarter_of_a_process() -> None:
    assert (DEVICE_QUOTA, PROCESS_QUOTA, LARGEST_REGION) == (4096, 16384, 0x4000_0000_0000)


def test_sh42_regions_together_fill_what_can_be_reserved_and_no_more() -> None:
    half = LARGEST_REGION // 2
    check_sizes(ShmemConfig({0: half, 7: half - PAGE, 8: PAGE}), RemoteProtocolError)
    with pytest.raises(RemoteProtocolError, match="all regions together") as caught:
        check_sizes(ShmemConfig({0: half, 7: half, 8: PAGE}), RemoteProtocolError)
    assert (caught.value.value, caught.value.limit) == (LARGEST_REGION + PAGE, LARGEST_REGION)


def test_remainders_may_be_single_bytes() -> None:
    whole = Mapping(5, 3, 20, True)
    assert remainders(whole, 6, 1) == (Mapping(5, 1, 20, True), Mapping(7, 1, 22, True))
    assert remainders(whole, 5, 2) == (Mapping(7, 1, 22, True),)
    assert remainders(whole, 6, 2) == (Mapping(5, 1, 20, True),)
