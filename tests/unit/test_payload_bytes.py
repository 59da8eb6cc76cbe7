"""Payloads byte by byte, in literal bytes: those that are more than a row of numbers, and where a count contradicts them."""

from __future__ import annotations

import pytest

from vhostuser.protocol.layout import Field, FieldError
from vhostuser.protocol.payloads import (
    U64,
    Config,
    CrosvmMap,
    CryptoSession,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Mmap,
    ShmemConfig,
    SingleRegion,
    Uuid,
    VringState,
    XenMemoryRegion,
    XenMemoryTable,
)


def numbers(size: int, *values: int) -> bytes:
    return b"".join(value.to_bytes(size, "little") for value in values)


PLAIN = [MemoryRegion(4 * at + 1, 4 * at + 2, 4 * at + 3, 4 * at + 4) for at in range(8)]
XEN = [XenMemoryRegion(6 * at, 6 * at + 1, 6 * at + 2, 6 * at + 3, 6 * at + 4, 6 * at + 5) for at in range(8)]


@pytest.mark.parametrize("count", range(1, 9))
def test_a_memory_table_is_a_count_padding_and_its_regions(count: int) -> None:
    data = numbers(4, count, 0) + numbers(8, *range(1, 4 * count + 1))
    table = MemoryTable(PLAIN[:count])
    assert table.pack() == data
    assert MemoryTable.unpack(data) == table
    assert MemoryTable.unpack(data).regions == tuple(PLAIN[:count])
    assert MemoryTable.unpack(numbers(4, count, 0xFFFF_FFFF) + data[8:]) == table
    assert len(data) in MemoryTable.SIZES
    for wrong in {0, count - 1, count + 1, 257, 0xFFFF_FFFF} - {count}:
        with pytest.raises(FieldError, match=f"num_regions is {wrong}, must be {count}, the number"):
            MemoryTable.unpack(numbers(4, wrong, 0) + data[8:])


@pytest.mark.parametrize("count", range(1, 9))
def test_a_xen_memory_table_has_regions_of_40_bytes(count: int) -> None:
    rows = [numbers(8, *range(6 * at, 6 * at + 4)) + numbers(4, 6 * at + 4, 6 * at + 5) for at in range(count)]
    data = numbers(4, count, 0) + b"".join(rows)
    assert XenMemoryTable(XEN[:count]).pack() == data
    assert XenMemoryTable.unpack(data).regions == tuple(XEN[:count])
    assert len(data) in XenMemoryTable.SIZES


def test_tables_of_one_to_eight_regions_have_a_size() -> None:
    assert MemoryTable.SIZES == (40, 72, 104, 136, 168, 200, 232, 264)
    assert XenMemoryTable.SIZES == (48, 88, 128, 168, 208, 248, 288, 328)
    assert ShmemConfig.SIZES == (2056,)
    assert (min(Config.SIZES), max(Config.SIZES), len(Config.SIZES)) == (12, 268, 257)
    assert (min(CryptoSession.SIZES), max(CryptoSession.SIZES)) == (0, 4096)
    assert (U64.SIZES, Mmap.SIZES, Inflight.SIZES) == ((8,), (40,), (24,))


@pytest.mark.parametrize("sizes", [{}, {0: 1}, {255: 1 << 63}, {1: 0x1000, 3: 0x2000, 200: 7}, dict.fromkeys(range(256), 9)])
def test_a_shared_memory_configuration_is_a_count_padding_and_256_sizes(sizes: dict[int, int]) -> None:
    data = numbers(4, len(sizes), 0) + numbers(8, *(sizes.get(at, 0) for at in range(256)))
    config = ShmemConfig(sizes)
    assert config.pack() == data
    assert ShmemConfig.unpack(data) == config
    assert ShmemConfig.unpack(data).sizes == sizes
    for wrong in {0, len(sizes) - 1, len(sizes) + 1, 257, 0xFFFF_FFFF} - {len(sizes), -1}:
        with pytest.raises(FieldError, match=f"num_regions is {wrong}, must be {len(sizes)}, the number"):
            ShmemConfig.unpack(numbers(4, wrong, 0) + data[8:])


def test_regions_of_no_size_do_not_exist_and_the_others_are_in_order() -> None:
    assert list(ShmemConfig({7: 1, 3: 0, 0: 2}).sizes.items()) == [(0, 2), (7, 1)]


@pytest.mark.parametrize("size", [0, 1, 255, 256])
def test_a_configuration_space_is_as_long_as_it_says(size: int) -> None:
    payload = bytes(at & 0xFF for at in range(size))
    data = numbers(4, 0x11, size, 0x22) + payload
    assert Config(0x11, size, 0x22, payload).pack() == data
    assert Config.unpack(data) == Config(0x11, size, 0x22, payload)
    for wrong in {0, size + 1, size - 1, 0xFFFF_FFFF} - {size, -1}:
        with pytest.raises(FieldError, match=f"size is {wrong}, must be {size}, the number of bytes"):
            Config.unpack(numbers(4, 0x11, wrong, 0x22) + payload)


@pytest.mark.parametrize(
    ("one", "same", "others"),
    [
        (MemoryTable(PLAIN[:2]), MemoryTable(PLAIN[:2]), [MemoryTable(PLAIN[:1]), XenMemoryTable(XEN[:2]), PLAIN[:2], None]),
        (ShmemConfig({1: 2}), ShmemConfig({1: 2, 3: 0}), [ShmemConfig({1: 3}), ShmemConfig({}), {1: 2}, None]),
        (CryptoSession(b"ab"), CryptoSession(bytes(bytearray(b"ab"))), [CryptoSession(b"a"), b"ab", None]),
        (VringState(1, 2), VringState(1, 2), [VringState(2, 1), (1, 2), None]),
    ],
    ids=["table", "configuration", "crypto", "state"],
)
def test_payloads_are_equal_if_their_fields_are(one: object, same: object, others: list[object]) -> None:
    assert one == same
    assert hash(one) == hash(same)
    assert repr(one) == repr(same)
    assert not any(one == other for other in others)


@pytest.mark.parametrize(("flags", "writable"), [(0, False), (1, True), (2, False), (3, True), (1 << 63, False)])
def test_a_map_is_writable_by_one_bit(flags: int, writable: bool) -> None:
    assert Mmap(0, 0, 0, 0, flags).writable is writable


def test_payloads_are_laid_out_in_literal_bytes() -> None:
    assert Mmap(1, 2, 3, 4, 5).pack() == b"\1" + bytes(7) + numbers(8, 2, 3, 4, 5)
    assert SingleRegion(1, 2, 3, 4).pack() == bytes(8) + numbers(8, 1, 2, 3, 4)
    assert CrosvmMap(1, 2, 3, 4, 5).pack() == b"\1\2" + bytes(6) + numbers(8, 3, 4, 5)
    assert Inflight(1, 2, 3, 4).pack() == numbers(8, 1, 2) + numbers(2, 3, 4) + bytes(4)
    assert CryptoSession(b"abc").pack() == b"abc"
    assert CryptoSession.unpack(b"abc") == CryptoSession(b"abc")


def test_fields_are_named_with_type_place_and_size() -> None:
    assert (Field("uuid", "u8[16]", 0, 16),) == Uuid.FIELDS
    assert (Field("value", "u64", 0, 8),) == U64.FIELDS
    assert (
        Field("flags", "u8", 0, 1),
        Field("shmid", "u8", 1, 1),
        Field("shm_offset", "u64", 8, 8),
        Field("fd_offset", "u64", 16, 8),
        Field("len", "u64", 24, 8),
    ) == CrosvmMap.FIELDS
    assert [field.offset for field in Inflight.FIELDS] == [0, 8, 16, 18]
