"""Feature masks in every dialect, bit by bit: a bit is translated by itself, whatever lies beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vhostuser.protocol.dialects import (
    DIALECTS,
    DRAFT,
    READ_WRITE_BITS,
    RELEASED,
    RELEASED_FLAGS,
    RUST_VMM_016,
    Dialect,
    FlagBits,
    diagnose_back_end,
    diagnose_front_end,
    meanings,
)
from vhostuser.protocol.layout import FieldError
from vhostuser.protocol.numbers import bits, mask

BITS = range(64)
SHMEM = 22
rows = pytest.mark.parametrize("dialect", list(DIALECTS.values()), ids=lambda dialect: dialect.name)
with_bit = pytest.mark.parametrize(
    "dialect", [row for row in DIALECTS.values() if row.bit is not None], ids=lambda dialect: dialect.name
)


def sets() -> list[set[int]]:
    """None, all, each alone, and all but each."""
    return [set(), set(BITS), *({bit} for bit in BITS), *(set(BITS) - {bit} for bit in BITS)]


@rows
def test_w33_a_mask_goes_out_with_shmem_at_its_bit_and_nothing_else_there(dialect: Dialect) -> None:
    for released in sets():
        sent = released - {SHMEM, dialect.bit} | ({dialect.bit} if SHMEM in released else set())
        assert dialect.to_wire(mask(released)) == mask(bit for bit in sent if bit is not None)


@rows
def test_w33_a_mask_comes_in_with_shmem_at_the_released_bit_and_nothing_else_there(dialect: Dialect) -> None:
    for sent in sets():
        released = sent - {SHMEM, dialect.bit} | ({SHMEM} if dialect.bit in sent else set())
        assert dialect.from_wire(mask(sent)) == mask(released)


@pytest.mark.parametrize(("flags", "write", "read"), [(RELEASED_FLAGS, 1, 0), (READ_WRITE_BITS, 2, 1)], ids=["one", "two"])
def test_sh17_flags_are_those_bits_and_no_others(flags: FlagBits, write: int, read: int) -> None:
    for value in (*range(16), *(1 << bit for bit in BITS), *(1 << bit | read for bit in BITS)):
        if value in (read, read | write):
            assert flags.decode(value) == (value == read | write)
            assert flags.encode(int(value == read | write)) == value
        else:
            with pytest.raises(FieldError, match="flags is"):
                flags.decode(value)


@pytest.mark.parametrize("dialect", [row for row in DIALECTS.values() if row.speakable], ids=lambda dialect: dialect.name)
def test_a_front_end_is_diagnosed_by_the_bit_of_the_dialect_alone(dialect: Dialect) -> None:
    bit = dialect.bit or 0
    for acknowledged in sets():
        text = diagnose_front_end(dialect, mask(acknowledged), asked_config=True)
        assert (text is None) is (bit in acknowledged)
        assert diagnose_front_end(dialect, mask(acknowledged), asked_config=False) is not None


@with_bit
def test_a_back_end_is_diagnosed_by_the_bits_that_say_shmem_alone(dialect: Dialect) -> None:
    others = [row for row in (RELEASED, RUST_VMM_016, DRAFT) if row is not dialect and row.bit != dialect.bit]
    for offered in sets():
        text = diagnose_back_end(dialect, mask(offered))
        todays = {20, 21} <= offered
        looks_like = next((row for row in others if row.bit in offered and (row is RELEASED or not todays)), None)
        if dialect.bit in offered or looks_like is None:
            assert text is None
        else:
            assert text is not None
            assert text.endswith(f"--shmem-dialect {looks_like.name}")


@pytest.mark.parametrize("dialect", [RELEASED, DIALECTS["crosvm-1000"]], ids=lambda dialect: dialect.name)
def test_a_back_end_with_both_bits_that_meant_shmem_knows_what_they_mean_today(dialect: Dialect) -> None:
    assert diagnose_back_end(dialect, mask((20, 21))) is None
    assert diagnose_back_end(dialect, mask((15, 20, 21))) is None


def test_a_bit_means_the_released_feature_first_and_nothing_where_none_is() -> None:
    assert meanings(0) == ["MQ"]
    assert meanings(SHMEM) == ["SHMEM"]
    assert [meanings(bit) for bit in (-1, 23, 24)] == [[], [], []]
    assert meanings(21) == ["GPA_ADDRESSES", f"SHMEM of {RUST_VMM_016.spoken_by}"]


@pytest.mark.parametrize("bit", BITS)
def test_a_mask_is_its_bits(bit: int) -> None:
    assert (mask([bit]), bits(1 << bit)) == (1 << bit, [bit])
    assert bits((1 << 64) - 1 & ~(1 << bit)) == [other for other in BITS if other != bit]
    assert mask([bit, bit]) == 1 << bit


def test_drafts_differ_from_the_released_numbering_in_the_bit_and_the_third_in_its_flags() -> None:
    ids = {name: (row.bit, row.map_id, row.unmap_id, row.config_id) for name, row in DIALECTS.items() if row.bit in (20, 21)}
    assert ids == {"rust-vmm-0.16": (21, 9, 10, 44), "draft": (20, 9, 10, 44), "draft-v3": (20, 9, 10, 44)}
    assert [name for name, row in DIALECTS.items() if row.speakable] == ["released", "rust-vmm-0.16", "draft"]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_dialect_with_another_number_is_not_spoken(change: int) -> None:
    others = [replace(RELEASED, map_id=9 + change), replace(RELEASED, unmap_id=10 + change)]
    others += [replace(RELEASED, config_id=44 + change), replace(RELEASED, flags=READ_WRITE_BITS)]
    assert RELEASED.speakable
    assert not any(other.speakable for other in others)


@pytest.mark.parametrize("flags", [2, 4, 1 << 63])
def test_sh17_only_the_bit_for_writing_is_translated(flags: int) -> None:
    assert (RELEASED_FLAGS.encode(flags), READ_WRITE_BITS.encode(flags)) == (0, 1)
    assert (RELEASED_FLAGS.encode(flags | 1), READ_WRITE_BITS.encode(flags | 1)) == (1, 3)
