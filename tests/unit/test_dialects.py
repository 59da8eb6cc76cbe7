"""The SHMEM numberings in the wild: every row, there and back, and what a diagnosis says."""

from __future__ import annotations

import re

import pytest

from tests.spec_table import CODES, FEATURES, TABLES
from vhostuser.protocol.dialects import (
    DIALECTS,
    READ_WRITE_BITS,
    RELEASED,
    RELEASED_FLAGS,
    RUST_VMM_016,
    Dialect,
    diagnose_back_end,
    diagnose_front_end,
    dialect_named,
    meanings,
)
from vhostuser.protocol.layout import FieldError, Payload
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import CrosvmMap, CrosvmUnmap, Mmap

CROSVM = TABLES["nonstandard"]["crosvm_2022_2024"]
rows = pytest.mark.parametrize("dialect", list(DIALECTS.values()), ids=lambda dialect: dialect.name)
SPEAKABLE = [dialect for dialect in DIALECTS.values() if dialect.speakable]
speakable = pytest.mark.parametrize("dialect", SPEAKABLE, ids=lambda dialect: dialect.name)


def test_the_released_row_is_the_specifications() -> None:
    assert RELEASED.bit == ProtocolFeature.SHMEM
    ids = (BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP, FrontendRequest.GET_SHMEM_CONFIG)
    assert (RELEASED.map_id, RELEASED.unmap_id, RELEASED.config_id) == ids


@pytest.mark.parametrize(("layout", "name"), [(CrosvmMap, "map_layout"), (CrosvmUnmap, "unmap_layout")])
def test_crosvm_layouts_are_those_that_were_seen(layout: type[Payload], name: str) -> None:
    *fields, size = CROSVM[name]
    declared = [[field.name, field.type, field.offset] for field in layout.FIELDS]
    assert declared == [field for field in fields if field[0] != "padding"]
    assert tuple(layout.SIZES) == (size,)
    assert all(field.type in CODES for field in layout.FIELDS)


def test_crosvm_ids_are_those_that_were_seen() -> None:
    configs = {int(number) for number in re.findall(r"(\d+) \(", " ".join(CROSVM["frontend"]))}
    pairs = next(ids for ids, meaning in CROSVM["backend"].items() if meaning == "SHMEM_MAP/UNMAP")
    seen = {(int(a), int(b)) for a, b in re.findall(r"(\d+)/(\d+)", pairs)}
    crosvm = [dialect for dialect in DIALECTS.values() if dialect.map_layout is CrosvmMap]
    assert {dialect.config_id for dialect in crosvm} == configs
    assert {(dialect.map_id, dialect.unmap_id) for dialect in crosvm} == seen
    bits = {int(bit) for bit in re.findall(r"bit (\d+)", CROSVM["feature"])}
    assert {dialect.bit for dialect in crosvm} - {None} == bits


def test_bits_that_meant_shmem_are_those_that_the_text_notes() -> None:
    noted = {row["bit"] for row in TABLES["protocol_features"] if "was SHMEM" in row["note"]}
    assert noted == {dialect.bit for dialect in SPEAKABLE} - {22} | {
        dialect.bit for dialect in DIALECTS.values() if dialect.name == "draft-v3"
    }


@rows
@pytest.mark.parametrize("flags", [0, 1])
def test_a_map_goes_there_and_back_in_every_dialect(dialect: Dialect, flags: int) -> None:
    request = Mmap(3, 0x1000, 0x2000, 0x3000, flags)
    data = dialect.pack_map(request)
    assert len(data) in dialect.map_layout.SIZES
    assert dialect.unpack_map(data) == request


@rows
def test_an_unmap_goes_there_and_back_without_what_it_ignores(dialect: Dialect) -> None:
    data = dialect.pack_unmap(Mmap(3, 0x1000, 0x2000, 0x3000, 1))
    assert len(data) in dialect.unmap_layout.SIZES
    assert dialect.unpack_unmap(data) == Mmap(3, 0, 0x2000, 0x3000, 0)


@rows
@pytest.mark.parametrize("wrong", [-1, 1, 8])
def test_a_payload_of_another_size_is_refused(dialect: Dialect, wrong: int) -> None:
    for layout, unpack in ((dialect.map_layout, dialect.unpack_map), (dialect.unmap_layout, dialect.unpack_unmap)):
        size = layout.STRUCT.size + wrong
        with pytest.raises(FieldError, match=f"size is {size}, must be {layout.STRUCT.size}"):
            unpack(bytes(size))


@pytest.mark.parametrize(("flags", "meant"), [(0, 0), (1, 1)])
def test_sh17_released_flags(flags: int, meant: int) -> None:
    assert RELEASED_FLAGS.decode(flags) == meant
    assert RELEASED_FLAGS.encode(meant) == flags


@pytest.mark.parametrize(("flags", "meant"), [(1, 0), (3, 1)])
def test_sh17_flags_with_a_bit_for_reading(flags: int, meant: int) -> None:
    assert READ_WRITE_BITS.decode(flags) == meant
    assert READ_WRITE_BITS.encode(meant) == flags


@pytest.mark.parametrize("flags", [2, 3, 1 << 63])
def test_sh17_unknown_flags_are_refused(flags: int) -> None:
    with pytest.raises(FieldError, match="made of 0x1"):
        RELEASED_FLAGS.decode(flags)


@pytest.mark.parametrize("flags", [0, 2, 4, 7, 1 << 63])
def test_sh17_flags_that_no_crosvm_sent_are_refused(flags: int) -> None:
    with pytest.raises(FieldError, match="made of 0x3 with 0x1"):
        READ_WRITE_BITS.decode(flags)


def test_a_dialect_without_a_bit_leaves_masks_alone() -> None:
    old = DIALECTS["crosvm-2022"]
    assert old.to_wire(1 << 22 | 0b11) == 0b11
    assert old.from_wire(0b11) == 0b11


def test_w33_a_dialect_never_offers_its_bit_for_what_the_bit_means_today() -> None:
    assert RUST_VMM_016.to_wire(1 << ProtocolFeature.GPA_ADDRESSES) == 0
    assert RUST_VMM_016.from_wire(1 << 21) == 1 << 22
    assert RELEASED.from_wire(1 << 21) == 1 << 21


@speakable
def test_a_dialect_is_chosen_by_name_or_bit(dialect: Dialect) -> None:
    assert dialect_named(dialect.name) is dialect
    assert dialect_named(str(dialect.bit)) is dialect


@pytest.mark.parametrize("name", ["", "23", "draft-v3", "crosvm-17", "17", "31"])
def test_a_dialect_that_we_cannot_speak_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=r"released \(22\), rust-vmm-0\.16 \(21\), draft \(20\)"):
        dialect_named(name)


def test_meanings_of_a_bit() -> None:
    assert meanings(22) == ["SHMEM"]
    assert meanings(63) == []
    assert meanings(31)[0].startswith("SHMEM of crosvm")
    for row in FEATURES:
        assert meanings(row.bit)[0] == row.name
    assert len(meanings(20)) == 3


@speakable
def test_a_back_end_that_offers_shmem_needs_no_diagnosis(dialect: Dialect) -> None:
    assert diagnose_back_end(dialect, 1 << (dialect.bit or 0)) is None
    assert diagnose_back_end(dialect, 0) is None


@speakable
@pytest.mark.parametrize("other", SPEAKABLE, ids=lambda dialect: dialect.name)
def test_a_back_end_of_another_dialect_is_named(dialect: Dialect, other: Dialect) -> None:
    text = diagnose_back_end(dialect, 1 << (other.bit or 0))
    if other is dialect:
        assert text is None
    else:
        assert text is not None
        assert f"--shmem-dialect {other.name}" in text
        assert f"no SHMEM (bit {dialect.bit}) but bit {other.bit}, {ProtocolFeature(other.bit or 0).name} today" in text


def test_nothing_is_diagnosed_where_no_bit_says_shmem() -> None:
    assert diagnose_back_end(DIALECTS["crosvm-2022"], 1 << 22) is None
    assert diagnose_front_end(DIALECTS["crosvm-2022"], 0, asked_config=False) is None


@speakable
def test_a_front_end_that_did_not_acknowledge_shmem_is_told_of(dialect: Dialect) -> None:
    text = diagnose_front_end(dialect, 0, asked_config=False)
    assert text is not None
    assert f"did not acknowledge SHMEM (bit {dialect.bit})" in text
    assert ("--shmem-dialect released" in text) == (dialect is not RELEASED)


@speakable
def test_a_front_end_that_never_asked_for_the_regions_is_told_of(dialect: Dialect) -> None:
    acknowledged = 1 << (dialect.bit or 0)
    text = diagnose_front_end(dialect, acknowledged, asked_config=False)
    assert text is not None
    assert f"acknowledged bit {dialect.bit} but never asked" in text
    assert diagnose_front_end(dialect, acknowledged, asked_config=True) is None
