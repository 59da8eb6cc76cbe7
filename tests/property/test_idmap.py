"""Ids of users, there and back."""

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vhostuser.devices.fs.idmap import IDENTITY, NONE, IdMap, parse_idmap

ids = st.one_of(st.integers(0, 40), st.integers(NONE - 40, NONE))
triples = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 10))


def mapped(rows: list[tuple[int, int, int]], kind: str) -> IdMap:
    """The map of these rows, if they don't overlap."""
    try:
        return parse_idmap(f"{kind}:{base}:{target}:{count}" for base, target, count in rows)
    except ValueError as error:
        assume("two rules translate" not in str(error))
        raise


@given(st.lists(triples, max_size=3), ids)
def test_map_goes_both_ways(rows: list[tuple[int, int, int]], id: int) -> None:
    found = mapped(rows, "map")
    inside = any(base <= id < base + count for base, _, count in rows)
    expected = next((target + id - base for base, target, count in rows if base <= id < base + count), id)
    assert found.to_host(id) == expected
    if inside:
        assert found.to_guest(expected) == id


@given(st.lists(triples, max_size=3), ids)
def test_one_way_types_leave_the_other_way_alone(rows: list[tuple[int, int, int]], id: int) -> None:
    for kind in ("guest", "squash-guest"):
        assert mapped(rows, kind).to_guest(id) == id
    for kind in ("host", "squash-host"):
        assert mapped(rows, kind).to_host(id) == id


@given(triples, ids)
@example((0, 107, NONE), NONE - 1)
@example((0, 107, NONE), NONE)
def test_squash_makes_them_one(row: tuple[int, int, int], id: int) -> None:
    base, target, count = row
    inside = base <= id < base + count
    assert mapped([row], "squash-guest").to_host(id) == (target if inside else id)
    assert mapped([row], "squash-host").to_guest(id) == (target if inside else id)


@given(st.integers(0, 30), st.integers(1, 10), ids)
def test_forbidden_is_eperm(base: int, count: int, id: int) -> None:
    found = parse_idmap([f"forbid-guest:{base}:{count}"])
    assert found.to_guest(id) == id
    if base <= id < base + count:
        with pytest.raises(PermissionError) as caught:
            found.to_host(id)
        assert caught.value.errno == errno.EPERM
    else:
        assert found.to_host(id) == id


@given(ids)
def test_without_rules_every_id_is_the_same(id: int) -> None:
    assert parse_idmap([]) == IDENTITY
    assert IDENTITY.to_host(id) == IDENTITY.to_guest(id) == id


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (["foo:1"], "no type 'foo'; there are guest, host, squash-guest, squash-host, map, forbid-guest"),
        (["map:1:2"], "'map:1:2' is not map:base:target:count"),
        (["forbid-guest:1:2:3"], "is not forbid-guest:base:count"),
        (["map:1:x:2"], "target 'x' is no number"),
        (["map:1:1:0"], "count 0 is no range"),
        (["map:4294967290:1:9"], "base 4294967290 + count 9 passes 4294967295"),
        (["map:1:4294967290:9"], "target 4294967290 + count 9 passes 4294967295"),
        (["squash-guest:0:4294967295:9"], "target 4294967295 is no id"),
        (["guest:0:0:9", "forbid-guest:8:2"], "two rules translate the guest's id 8: one range is 0 to 8"),
        (["host:0:0:9", "map:20:8:2"], "two rules translate the host's id 8"),
    ],
)
def test_a_wrong_rule_is_explained(rules: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_idmap(rules)
