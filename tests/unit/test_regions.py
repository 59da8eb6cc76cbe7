"""What a shared memory region takes and gives back: bounds, overlap, exact unmap, quotas, and at what cost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.halves import HALVES, table_of, using
from tests.relations import BASE, OVERLAPPING, PAGE, RELATIONS
from vhostuser.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from vhostuser.memory.table import new_quota
from vhostuser.protocol.numbers import END_OF_ADDRESSES, END_OF_FILE_OFFSETS
from vhostuser.protocol.payloads import Mmap, ShmemConfig
from vhostuser.protocol.regions import (
    LARGEST_REGION,
    Mapping,
    MappingTable,
    Table,
    check_map,
    check_sizes,
    check_unmap,
    remainders,
)

SIZE = 16 * PAGE
OLD = Mapping(BASE[0], BASE[1] - BASE[0], 2 * PAGE, True)
GOOD = Mmap(0, 0, 0, PAGE)
WRAPPING = [(END_OF_ADDRESSES - PAGE, 2 * PAGE), (END_OF_ADDRESSES - 1, 1), (0, END_OF_ADDRESSES - 1)]
relations = pytest.mark.parametrize("name", RELATIONS)


@pytest.fixture(params=HALVES)
def table(request: pytest.FixtureRequest) -> Table:
    made = table_of(request.param)
    made.insert(OLD)
    return made


def asks(name: str) -> Mmap:
    start, end = RELATIONS[name]
    return Mmap(0, 0, start, end - start)


def refused_map(request: Mmap, table: Table | None = None, size: int = SIZE) -> ProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        check_map(request, size, MappingTable() if table is None else table, RemoteProtocolError)
    return caught.value


def refused_unmap(request: Mmap, table: Table, size: int = SIZE) -> ProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        check_unmap(request, size, table, RemoteProtocolError)
    return caught.value


@relations
def test_sh02_a_map_overlaps_no_other(table: Table, name: str) -> None:
    request = asks(name)
    if name in OVERLAPPING:
        error = refused_map(request, table)
        assert (error.field, error.value, error.limit) == ("shm_offset", request.shm_offset, OLD.end)
        assert str(error) == (
            f"SHMEM_MAP shm_offset {request.shm_offset:#x} + len {request.len:#x} "
            f"overlaps the mapping at {OLD.shm_offset:#x} that ends at {OLD.end:#x}"
        )
    else:
        check_map(request, SIZE, table, RemoteProtocolError)
    assert list(table) == [OLD]


@relations
def test_sh03_an_unmap_takes_one_whole_mapping(table: Table, name: str) -> None:
    if name == "equals":
        assert check_unmap(asks(name), SIZE, table, RemoteProtocolError) == OLD
    else:
        error = refused_unmap(asks(name), table)
        assert "is not one whole mapping of region 0" in str(error)
        assert (error.request, error.field) == ("SHMEM_UNMAP", "shm_offset")
    assert list(table) == [OLD]


def test_sh06_an_empty_range_is_refused(table: Table) -> None:
    for error in (refused_map(replace(GOOD, len=0)), refused_unmap(replace(GOOD, len=0), table)):
        assert (error.field, error.value, error.limit) == ("len", 0, PAGE)


@pytest.mark.parametrize(("offset", "len"), WRAPPING)
def test_sh07_a_range_that_wraps_is_refused(table: Table, offset: int, len: int) -> None:
    for error in (refused_map(Mmap(0, 0, offset, len)), refused_unmap(Mmap(0, 0, offset, len), table)):
        assert error.field in ("shm_offset", "len")
        assert hex(error.value if isinstance(error.value, int) else 0) in str(error)


@pytest.mark.parametrize(
    "offset", [END_OF_ADDRESSES - PAGE, END_OF_FILE_OFFSETS - PAGE, END_OF_FILE_OFFSETS, END_OF_FILE_OFFSETS - 2 * PAGE]
)
def test_sh08_a_file_range_that_no_file_has_is_refused(offset: int) -> None:
    error = refused_map(Mmap(0, offset, 0, 2 * PAGE))
    assert (error.field, error.value, error.limit) == ("fd_offset", offset, END_OF_FILE_OFFSETS)


def test_sh08_the_last_pages_of_the_largest_file_are_taken() -> None:
    check_map(Mmap(0, END_OF_FILE_OFFSETS - 2 * PAGE, 0, PAGE), SIZE, MappingTable(), RemoteProtocolError)


@pytest.mark.parametrize("field", ["shm_offset", "fd_offset", "len"])
@pytest.mark.parametrize("off", [1, 512, 2048])
def test_sh09_unaligned_numbers_are_refused(table: Table, field: str, off: int) -> None:
    request = replace(GOOD, **{field: PAGE + off})
    error = refused_map(request)
    assert (error.field, error.value, error.limit) == (field, PAGE + off, PAGE)
    if field != "fd_offset":
        assert refused_unmap(request, table).field == field


@pytest.mark.parametrize(("offset", "len"), [(SIZE - PAGE, 2 * PAGE), (SIZE, PAGE), (0, SIZE + PAGE)])
def test_sh10_a_range_past_the_end_is_refused(table: Table, offset: int, len: int) -> None:
    for error in (refused_map(Mmap(3, 0, offset, len)), refused_unmap(Mmap(3, 0, offset, len), table)):
        assert (error.field, error.value, error.limit) == ("shm_offset", offset, SIZE)
        assert f"+ len {len:#x} passes region 3's end {SIZE:#x}" in str(error)


@pytest.mark.parametrize(("offset", "len"), [(SIZE - PAGE, PAGE), (0, SIZE)])
def test_sh10_a_range_up_to_the_end_is_taken(offset: int, len: int) -> None:
    check_map(Mmap(0, 0, offset, len), SIZE, MappingTable(), RemoteProtocolError)


@pytest.mark.parametrize("shmid", [1, 255])
def test_sh11_a_region_that_is_not_there_takes_nothing(table: Table, shmid: int) -> None:
    for error in (refused_map(replace(GOOD, shmid=shmid), size=0), refused_unmap(replace(GOOD, shmid=shmid), table, 0)):
        assert (error.field, error.value) == ("shmid", shmid)


@pytest.mark.parametrize("flags", [2, 3, 1 << 63])
def test_sh17_unknown_flags_are_refused(flags: int) -> None:
    error = refused_map(replace(GOOD, flags=flags))
    assert (error.field, error.value, error.limit) == ("flags", flags, 1)


def test_sh17_an_unmap_ignores_flags_and_file_offset(table: Table) -> None:
    request = Mmap(0, 7, OLD.shm_offset, OLD.len, 1 << 63)
    assert check_unmap(request, SIZE, table, RemoteProtocolError) == OLD


@pytest.mark.parametrize("half", HALVES)
def test_sh33_a_second_unmap_and_one_of_another_region_are_refused(half: str) -> None:
    mine, other = table_of(half), table_of(half)
    mine.insert(OLD)
    request = Mmap(1, 0, OLD.shm_offset, OLD.len)
    refused_unmap(request, other)
    mine.remove(check_unmap(request, SIZE, mine, RemoteProtocolError))
    refused_unmap(request, mine)
    assert (len(mine), list(other)) == (0, [])


@pytest.mark.parametrize("kind", [LocalProtocolError, RemoteProtocolError])
def test_the_refusal_is_of_the_kind_that_was_asked_for(kind: type[ProtocolError]) -> None:
    with pytest.raises(kind):
        check_map(replace(GOOD, len=0), SIZE, MappingTable(), kind)
    with pytest.raises(kind):
        check_unmap(GOOD, SIZE, MappingTable(), kind)
    with pytest.raises(kind):
        check_sizes(ShmemConfig({0: 1}), kind)


# Sizes, quotas, arithmetic


@pytest.mark.parametrize("size", [1, PAGE + 1, END_OF_ADDRESSES - 1, LARGEST_REGION + PAGE])
def test_sh42_sizes_that_cannot_be_are_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_sizes(ShmemConfig({7: size}), RemoteProtocolError)
    assert (caught.value.request, caught.value.field, caught.value.value) == ("GET_SHMEM_CONFIG", "size", size)


@pytest.mark.parametrize("sizes", [{}, {0: PAGE, 255: 1 << 40}, {0: LARGEST_REGION}])
def test_sizes_that_can_be_are_taken(sizes: dict[int, int]) -> None:
    check_sizes(ShmemConfig(sizes), RemoteProtocolError)


@pytest.mark.parametrize("half", HALVES)
def test_sh26_the_quota_that_has_no_room_is_named(half: str) -> None:
    with using(half):
        process = new_quota("process", 3)
        one, two = new_quota("device", 2, process), new_quota("device", 2, process)
        assert one.exhausted() is None
        one.add(2)
        assert one.exhausted() is one
        assert two.exhausted() is None
        two.add(1)
        assert two.exhausted() is process
        assert (process.used, process.limit, process.name) == (3, 3, "process")
        one.add(-2)
        assert two.exhausted() is None
        assert (one.used, two.used, process.used) == (0, 1, 1)


@relations
def test_remainders_of_a_range_in_each_relation(name: str) -> None:
    start, end = RELATIONS[name]
    pieces = remainders(OLD, start, end - start)
    kept = [at for at in range(OLD.shm_offset, OLD.end, PAGE) if not start <= at < end]
    assert [at for piece in pieces for at in range(piece.shm_offset, piece.end, PAGE)] == kept
    for piece in pieces:
        assert piece.fd_offset - piece.shm_offset == OLD.fd_offset - OLD.shm_offset
        assert piece.writable is OLD.writable
    assert len(pieces) == {"during": 2, "equals": 0, "contains": 0, "started-by": 0, "finished-by": 0}.get(name, 1)


class CountedInt(int):
    """An integer that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        CountedInt.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        CountedInt.comparisons += 1
        return int(self) > int(other)

    def __le__(self, other: int) -> bool:
        CountedInt.comparisons += 1
        return int(self) <= int(other)

    def __ge__(self, other: int) -> bool:
        CountedInt.comparisons += 1
        return int(self) >= int(other)


@pytest.mark.parametrize("count", [16, 256, 4096])
def test_looking_a_mapping_up_takes_comparisons_that_grow_with_the_logarithm(count: int) -> None:
    table = MappingTable()
    for at in range(count):
        table.insert(Mapping(CountedInt(2 * at * PAGE), PAGE, 0, False))
    middle = CountedInt(count * PAGE)
    for look in (table.exact, table.overlapping, table.covering):
        CountedInt.comparisons = 0
        assert look(middle, PAGE)
        assert CountedInt.comparisons <= 3 * (math.log2(count) + 2)
    CountedInt.comparisons = 0
    table.remove(Mapping(middle, PAGE, 0, False))
    table.insert(Mapping(middle, PAGE, 0, False))
    assert CountedInt.comparisons <= 2 * (math.log2(count) + 2)
