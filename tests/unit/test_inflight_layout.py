"""The inflight area byte by byte: where its fields lie, in which parts, and which areas and versions are none."""

from __future__ import annotations

import os
from itertools import permutations

import pytest

from vhostuser.errors import QueueBroken, RemoteProtocolError
from vhostuser.memory.inflight import (
    PACKED,
    SPLIT,
    Fields,
    InflightArea,
    Layout,
    Recovered,
    area_size,
    enter,
    in_progress,
    is_new,
    make_valid,
    new_area,
)
from vhostuser.memory.mapping import address_of
from vhostuser.protocol.payloads import Inflight
from vhostuser.testing import sparse_file

PAGE = 4096
kinds = pytest.mark.parametrize("fragile", [False, True], ids=["solid", "fragile"])
layouts = pytest.mark.parametrize("layout", [SPLIT, PACKED], ids=["split", "packed"])


def part(size: int = 512, entries: int = 8, *, fill: bytes = b"\0", fragile: bool = False) -> tuple[Fields, bytearray]:
    """A part of an area, and its bytes."""
    data = bytearray(fill * size)
    return Fields(memoryview(data), address_of(data), entries, fragile=fragile), data


def test_parts_have_the_bytes_of_the_specification_in_whole_lines_of_64() -> None:
    assert (Layout(16, 16), Layout(32, 32)) == (SPLIT, PACKED)
    for layout, each in ((SPLIT, 16), (PACKED, 32)):
        for entries in (*range(1, 20), 255, 256, 32768):
            wanted = each + each * entries
            size = layout.size(entries)
            assert wanted <= size < wanted + 64
            assert size % 64 == 0
            for queues in (1, 3, 256):
                assert area_size(layout, queues, entries) == queues * size


@kinds
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_field_is_its_bytes_and_no_others(fragile: bool, size: int) -> None:
    for offset in (0, 8, 64, 504):
        fields, data = part(fill=b"\xff", fragile=fragile)
        value = int.from_bytes(bytes(range(1, size + 1)), "little")
        fields.put(offset, size, value)
        whole = bytearray(b"\xff" * 512)
        whole[offset : offset + size] = bytes(range(1, size + 1))
        assert data == whole
        assert fields.get(offset, size) == value
    assert (fields.entries, fields.solid is None) == (8, fragile)


@kinds
def test_a_part_becomes_valid_by_its_count_and_its_version(fragile: bool) -> None:
    fields, data = part(entries=0x1234, fill=b"\xee", fragile=fragile)
    make_valid(fields)
    assert bytes(data[:16]) == b"\xee" * 8 + b"\x01\x00\x34\x12" + b"\xee" * 4


@kinds
def test_a_request_is_in_progress_by_its_counter_and_its_first_byte(fragile: bool) -> None:
    fields, data = part(fill=b"\xee", fragile=fragile)
    enter(fields, 0x50, 0x0807060504030201)
    assert bytes(data[0x50:0x60]) == b"\x01" + b"\xee" * 7 + bytes(range(1, 9))
    assert data.count(b"\xee") == 512 - 9


@kinds
@layouts
def test_what_is_in_progress_comes_in_the_order_of_its_counters(layout: Layout, fragile: bool) -> None:
    for order in permutations((0, 1, 3, 6)):
        fields, _ = part(fragile=fragile)
        for counter, at in enumerate(order, 1 << 40):
            enter(fields, layout.header + layout.entry * at, counter)
        found = in_progress(fields, layout, 8)
        assert (found.entries, found.counter) == (list(order), (1 << 40) + 4)
        assert in_progress(fields, layout, 6).entries == [at for at in order if at < 6]


def test_counters_go_on_behind_the_largest_and_wrap() -> None:
    assert (Recovered([]).entries, Recovered([]).counter) == ([], 0)
    assert Recovered([(0, 5)]).counter == 1
    assert Recovered([(9, 1), (3, 2), (3, 0)]).entries == [0, 2, 1]
    assert Recovered([((1 << 64) - 1, 1)]).counter == 0


@kinds
def test_a_part_is_new_at_version_0_and_known_at_version_1(fragile: bool) -> None:
    for version in (0, 1, 2, 0x100, 0x101, 0xFFFF):
        fields, data = part(fragile=fragile)
        data[8:10] = version.to_bytes(2, "little")
        for size in (1, 7, 8):
            if version > 1:
                with pytest.raises(QueueBroken, match=f"has version {version}, not 1"):
                    is_new(fields, size)
            else:
                assert is_new(fields, size) is not bool(version)
        with pytest.raises(QueueBroken, match="has 8 entries, the ring 9"):
            is_new(fields, 9)


def test_a_ring_of_more_than_256_entries_may_be_smaller_than_its_part() -> None:
    fields, _ = part(entries=1024)
    assert is_new(fields, int("1024"))
    assert is_new(fields, 1023)


@layouts
@pytest.mark.parametrize("offset", [0, 8, 4088])
def test_parts_lie_one_behind_the_other(layout: Layout, offset: int) -> None:
    queues, size = 3, 5
    total = area_size(PACKED, queues, size)
    with sparse_file(offset + total, seal=True) as fd:
        area = InflightArea(Inflight(total, offset, queues, size), fd.fileno())
        for index in range(queues):
            fields = area.part(index, layout)
            assert fields is not None
            assert (fields.entries, fields.solid and fields.solid.nbytes) == (size, layout.size(size))
            fields.put(0, 8, 0x1111 * (index + 1))
        assert area.part(queues, layout) is None
        whole = os.pread(fd.fileno(), total, offset)
    starts = [index * layout.size(size) for index in range(queues)]
    assert [int.from_bytes(whole[start : start + 8], "little") for start in starts] == [0x1111, 0x2222, 0x3333]
    assert whole.count(0) == total - 2 * queues


def test_a_part_that_does_not_fit_breaks_its_ring_alone() -> None:
    total = area_size(SPLIT, 2, 5)
    with sparse_file(PAGE, seal=True) as fd:
        area = InflightArea(Inflight(total, 0, 2, 5), fd.fileno())
        assert area.part(0, PACKED)
        assert area.part(1, SPLIT)
        with pytest.raises(QueueBroken, match=f"has {total:#x} bytes, the part of ring 1 ends at {2 * PACKED.size(5):#x}"):
            area.part(1, PACKED)


@pytest.mark.parametrize("seal", [False, True])
def test_an_area_that_is_forgotten_is_new_in_both_formats(seal: bool) -> None:
    total = area_size(PACKED, 3, 5)
    with sparse_file(total, seal=seal) as fd:
        os.pwrite(fd.fileno(), b"\xff" * total, 0)
        InflightArea(Inflight(total, 0, 3, 5), fd.fileno()).forget()
        versions = {index * layout.size(5) + 8 for layout in (SPLIT, PACKED) for index in range(3)}
        zeroed = {at for version in versions for at in (version, version + 1)}
        assert {at for at, byte in enumerate(os.pread(fd.fileno(), total, 0)) if not byte} == zeroed


def test_an_area_that_has_room_for_one_format_only_is_forgotten_in_it() -> None:
    total = area_size(SPLIT, 3, 5)
    with sparse_file(total, seal=True) as fd:
        os.pwrite(fd.fileno(), b"\xff" * total, 0)
        InflightArea(Inflight(total, 0, 3, 5), fd.fileno()).forget()
        fit = total // PACKED.size(5)
        versions = {index * SPLIT.size(5) + 8 for index in range(3)} | {index * PACKED.size(5) + 8 for index in range(fit)}
        zeroed = {at for version in versions for at in (version, version + 1)}
        assert {at for at, byte in enumerate(os.pread(fd.fileno(), total, 0)) if not byte} == zeroed


def test_an_area_is_as_large_as_its_queues_need_and_within_its_file() -> None:
    needed = area_size(SPLIT, 2, 5)
    with sparse_file(PAGE, seal=True) as fd:
        for body in (Inflight(needed, 0, 2, 5), Inflight(needed, PAGE - needed, 2, 5), Inflight(PAGE, 0, 2, 5)):
            InflightArea(body, fd.fileno())
        for body, field, limit in (
            (Inflight(needed - 1, 0, 2, 5), "mmap_size", needed),
            (Inflight(needed, PAGE - needed + 8, 2, 5), "mmap_offset", PAGE),
            (Inflight(PAGE + 1, 0, 2, 5), "mmap_offset", PAGE),
            (Inflight(needed, 4, 2, 5), "mmap_offset", PAGE),
            (Inflight(needed, 9, 2, 5), "mmap_offset", PAGE),
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                InflightArea(body, fd.fileno())
            assert (caught.value.request, caught.value.field, caught.value.limit) == ("SET_INFLIGHT_FD", field, limit)


def test_a_new_area_has_room_for_both_formats_and_is_all_zeroes() -> None:
    body, fd = new_area(3, 5)
    with fd:
        size = 3 * PACKED.size(5)
        assert body == Inflight(size, 0, 3, 5)
        assert os.fstat(fd.fileno()).st_size == size
        assert os.pread(fd.fileno(), size, 0) == bytes(size)
        assert InflightArea(body, fd.fileno()).part(2, PACKED)
