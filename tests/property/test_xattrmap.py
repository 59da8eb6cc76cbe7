"""Names of extended attributes, there and back."""

from __future__ import annotations

import errno

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vhostuser.devices.fs.xattrmap import Kind, Rule, Scope, XattrMap, XattrMapError, parse_xattrmap

parts = st.text("ab.", max_size=4)
names = st.text("ab.", max_size=8).map(str.encode)


def sent(found: XattrMap, name: bytes) -> bytes | None:
    """The host's name, or None if it is denied."""
    try:
        return found.client_to_host(name)
    except OSError:
        return None


@given(parts, parts, names)
@example("trusted.", "user.virtiofs.", b"trusted.x")
@example("", "user.virtiofs.", b"security.capability")
def test_what_a_map_rule_sends_comes_back(key: str, prepend: str, name: bytes) -> None:
    found = parse_xattrmap(f":map:{key}:{prepend}:")
    there = sent(found, name)
    assume(there is not None)
    assert found.host_to_client(there or b"") == name


@given(parts, parts, names, names)
def test_no_two_names_meet_on_the_host_behind_a_map_rule(key: str, prepend: str, one: bytes, other: bytes) -> None:
    found = parse_xattrmap(f"/map/{key}/{prepend}/")
    assume(one != other and sent(found, one) is not None)
    assert sent(found, one) != sent(found, other)


rules = st.builds(Rule, st.sampled_from(Kind), st.sampled_from(Scope), parts.map(str.encode), parts.map(str.encode))


def written(rule: Rule, separator: str) -> str:
    fields = (rule.kind.value, rule.scope.value, rule.key.decode(), rule.prepend.decode())
    return separator + separator.join(fields) + separator


@given(st.lists(rules, max_size=4), st.sampled_from(":/,|"), st.sampled_from(["", " ", "\n\t"]))
def test_rules_are_read_as_they_were_written(some: list[Rule], separator: str, space: str) -> None:
    every = [*some, Rule(Kind.OK, Scope.ALL, b"", b"")]
    assert parse_xattrmap(space + space.join(written(rule, separator) for rule in every)).rules == tuple(every)


@given(st.lists(rules, max_size=4), names)
def test_the_first_rule_that_matches_decides(some: list[Rule], name: bytes) -> None:
    found = XattrMap((*some, Rule(Kind.OK, Scope.ALL, b"", b"")))
    first = next(rule for rule in found.rules if rule.for_client(name))
    expected = {Kind.PREFIX: first.prepend + name, Kind.OK: name}.get(first.kind)
    assert sent(found, name) == expected
    first = next(rule for rule in found.rules if rule.for_server(name))
    expected = {Kind.PREFIX: name[len(first.prepend) :], Kind.OK: name}.get(first.kind)
    assert found.host_to_client(name) == expected


def test_bad_is_eperm_and_unsupported_is_enotsup() -> None:
    found = parse_xattrmap(":bad:client:a::  :unsupported:client:b:: :ok:all:::")
    for name, number in ((b"a.x", errno.EPERM), (b"b.x", errno.EOPNOTSUPP)):
        with pytest.raises(OSError, match="not") as caught:
            found.client_to_host(name)
        assert caught.value.errno == number
    assert found.client_to_host(b"c") == b"c"


WRONG = [
    (":prefix:client:trusted.:", 1, 24, 1, "expected the field 'prepend' and a closing ':'"),
    (":ok:all::: :bad", 2, 1, 3, "expected a closing ':' after the field 'type'"),
    (":ok:all::: /pre/all///", 2, 1, 3, "no type; there are prefix, ok, bad, unsupported, map"),
    (":ok:every:::", 1, 4, 5, "no scope; there are client, server, all"),
    (":map::a.: :ok:all:::", 2, 0, 10, "the rule 'map' must be the last one"),
    (":ok:client:::", 1, 13, 1, "no rule matches every name from the server; end with :ok:all::: or :bad:all:::"),
    ("", 0, 0, 1, "no rule matches every name from the client; end with :ok:all::: or :bad:all:::"),
]


@pytest.mark.parametrize(("text", "number", "start", "width", "problem"), WRONG)
def test_a_wrong_rule_says_where(text: str, number: int, start: int, width: int, problem: str) -> None:
    with pytest.raises(XattrMapError) as caught:
        parse_xattrmap(text)
    error = caught.value
    assert (error.number, error.start, error.width, error.problem) == (number, start, width, problem)
