"""What each request is made of, and how its bytes are taken apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostuser.fuse import structs
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import OUT_HEADER_SIZE, RULES, Call, MalformedRequest, answer, is_name, take_apart, taker
from vhostuser.fuse.structs import InHeader, OutHeader
from vhostuser.protocol.layout import Field, Payload

from .standin import body_of

PAYLOADS = [cls for cls in vars(structs).values() if isinstance(cls, type) and issubclass(cls, Payload)]
CLASSES = [cls for cls in PAYLOADS if cls is not Payload]
NOT_KNOWN = {Opcode.BMAP, Opcode.IOCTL, Opcode.POLL, Opcode.NOTIFY_REPLY}
HEADER = InHeader(nodeid=5)


def values(field: Field) -> st.SearchStrategy[int | bytes]:
    """Whatever a field can hold."""
    if field.type.startswith("u8["):
        return st.binary(min_size=field.size, max_size=field.size)
    bits = field.size * 8
    signed = field.type.startswith("i")
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_a_struct_survives_the_wire(cls: type[Payload], data: st.DataObject) -> None:
    made = cls(*(data.draw(values(field)) for field in cls.FIELDS))
    packed = made.pack()
    assert len(packed) == cls.STRUCT.size
    assert cls.unpack(packed) == made


def test_every_request_has_a_rule_but_those_that_are_not_done() -> None:
    assert set(RULES) == set(Opcode) - NOT_KNOWN


@pytest.mark.parametrize("opcode", RULES, ids=lambda opcode: opcode.name)
def test_a_right_body_is_taken_apart_and_a_cut_one_is_not(opcode: Opcode) -> None:
    rule, body = RULES[opcode], body_of(opcode)
    call = take_apart(HEADER, rule, body)
    packed = call.arguments.pack() if call.arguments else b""
    assert packed + b"".join(name + b"\0" for name in call.names) + call.data == body
    assert (call.header, type(call.arguments)) == (HEADER, rule.arguments or type(None))
    assert not call.data or rule.data
    least = len(body) - len(call.data)
    for size in range(least):
        with pytest.raises(MalformedRequest):
            take_apart(HEADER, rule, body[:size])


@pytest.mark.parametrize("opcode", RULES, ids=lambda opcode: opcode.name)
def test_more_than_its_rule_says_is_refused(opcode: Opcode) -> None:
    rule, body = RULES[opcode], body_of(opcode)
    if rule.data or rule.extensions:
        assert take_apart(HEADER, rule, body + b"more").data.endswith(b"more")
        return
    with pytest.raises(MalformedRequest, match="4 bytes follow its end"):
        take_apart(HEADER, rule, body + b"more")


def outcome(act: Callable[[], Call]) -> Call | str:
    """What comes of taking a request apart."""
    try:
        return act()
    except MalformedRequest as error:
        return str(error)


@pytest.mark.parametrize("opcode", RULES, ids=lambda opcode: opcode.name)
def test_the_short_way_takes_apart_as_the_long_one(opcode: Opcode) -> None:
    rule, body = RULES[opcode], body_of(opcode)
    bodies = [*(body[:size] for size in range(len(body) + 1)), body + b"more", body + b"\0", body[:-1] + b"x", b"\0" + body]
    take = taker(rule)
    for each in bodies:
        long = outcome(partial(take_apart, HEADER, rule, each))
        assert outcome(partial(take, HEADER, HEADER.pack() + each)) == long


def test_a_refusal_says_how_many_bytes_there_are() -> None:
    with pytest.raises(MalformedRequest, match="its arguments have 7 bytes, not 8"):
        take_apart(HEADER, RULES[Opcode.FORGET], bytes(7))
    with pytest.raises(MalformedRequest, match="a name has no end"):
        take_apart(HEADER, RULES[Opcode.LOOKUP], b"name")


@pytest.mark.parametrize("name", [b"a", b"...", b".a", b"a b", b"\xff", b"a" * 300])
def test_these_are_names(name: bytes) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/a", b"a/"])
def test_these_are_none(name: bytes) -> None:
    """F01."""
    assert not is_name(name)


def test_an_answer_begins_with_its_length_error_and_request() -> None:
    assert answer(7, b"result") == OutHeader(OUT_HEADER_SIZE + 6, 0, 7).pack() + b"result"
    assert answer(7, error=2) == OutHeader(OUT_HEADER_SIZE, -2, 7).pack()
