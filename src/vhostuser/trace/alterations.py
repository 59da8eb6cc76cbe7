"""What a rule may do to a message: bytes in, verdict out."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Final, NamedTuple

from ..protocol.framing import reply_frame
from ..protocol.layout import Field
from ..protocol.numbers import END_OF_ADDRESSES, HEADER_SIZE, NEED_REPLY
from ..protocol.payloads import U64
from ..protocol.rules import BACKEND, FRONTEND, Reply
from .conversation import Exchange
from .decoded import Decoded
from .rule_text import Parts
from .verdict import Verdict
from .words import layout_of

Change = Callable[[Decoded, Exchange], Verdict | None]
"""What becomes of a message, and the exchange that it belongs to; None if there is nothing to be done to this one."""
LONGEST_DELAY: Final = 3600 * 1_000_000_000
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|ms|s)")
_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_FIELD: Final = re.compile(r"(?P<name>[a-z_0-9.]+|@\d{1,5})(?P<sign>[=^])(?P<number>.+)")
_HEADER: Final = {
    "header.request": Field("header.request", "u32", 0, 4),
    "header.flags": Field("header.flags", "u32", 4, 4),
    "header.size": Field("header.size", "u32", 8, 4),
}
_WHOLE_NUMBERS: Final = frozenset({1, 2, 4, 8})


def change_of(parts: Parts) -> Change:
    """What a rule does. RuleError if its action is unknown, or its value means nothing."""
    make = _ACTIONS.get(parts.name)
    if make is None:
        near = get_close_matches(parts.name, _ACTIONS, 1)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(_ACTIONS)}"
        parts.fail(f"there is no action {parts.name[:40]!a}; {known}", parts.name, 0)
    return make(parts)


def _delay(parts: Parts) -> Change:
    found = _TIME.fullmatch(parts.value or "")
    nanoseconds = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not 0 < nanoseconds <= LONGEST_DELAY:
        parts.fail("expected a time up to an hour, such as delay=10ms")
    verdict = Verdict(f"delayed {parts.value}", delay=nanoseconds)
    return lambda message, exchange: verdict


def _drop(parts: Parts) -> Change:
    _takes_no_value(parts)
    verdict = Verdict("dropped", data=b"")
    return lambda message, exchange: verdict


def _close(parts: Parts) -> Change:
    _takes_no_value(parts)
    verdict = Verdict("closed here", close=True)
    return lambda message, exchange: verdict


def _refuse(parts: Parts) -> Change:
    status = 1 if parts.value is None else _number(parts, parts.value)
    if not 0 < status < END_OF_ADDRESSES:
        parts.fail("expected a status that is not 0, such as refuse=12")
    if parts.on_reply:
        parts.fail("a reply can't be refused, only a request", "@reply", parts.text.index("@reply"))

    return lambda message, exchange: refusal(message, status)


def refusal(message: Decoded, status: int) -> Verdict:
    """The request does not go on; if it waits for an answer it gets `status` as its acknowledgement."""
    waits = message.message.flags & NEED_REPLY or (message.rule and message.rule.reply is Reply.OWN)
    answer = reply_frame(message.message.request, U64(status)).pack() if waits else b""
    return Verdict(f"refused with {status}" if waits else "refused, which nobody asked to be told", data=b"", answer=answer)


def _truncate(parts: Parts) -> Change:
    size = _number(parts, parts.value or "")

    def truncate(message: Decoded, exchange: Exchange) -> Verdict | None:
        data = message.message.data
        return Verdict(f"truncated to {size} of {len(data)} bytes", data=data[:size]) if size < len(data) else None

    return truncate


def _corrupt(parts: Parts) -> Change:
    found = _FIELD.fullmatch(parts.value or "")
    if not found:
        parts.fail("expected a field and a number, such as corrupt=len=0 or corrupt=len^1")
    name, flips = found["name"], found["sign"] == "^"
    number = _number(parts, found["number"], found.start("number"))
    _check_field(parts, name)

    def corrupt(message: Decoded, exchange: Exchange) -> Verdict | None:
        place = place_of(message, name)
        if place is None:
            return None
        before = value_at(message.message.data, place)
        after = before ^ number if flips else number
        changed = with_value(message.message.data, place, after)
        return Verdict(f"changed: {name} {before:#x} to {value_at(changed, place):#x}", data=changed)

    return corrupt


_ACTIONS: Final[dict[str, Callable[[Parts], Change]]] = {
    "delay": _delay,
    "drop": _drop,
    "refuse": _refuse,
    "corrupt": _corrupt,
    "truncate": _truncate,
    "close": _close,
}


class Place(NamedTuple):
    """Where a number is."""

    start: int
    size: int


def place_of(message: Decoded, name: str) -> Place | None:
    """Where the number of that name is in a message; None if it has none."""
    field = _field_of(message, name)
    if field is None or field.offset + field.size > len(message.message.data):
        return None
    return Place(field.offset, field.size)


def value_at(data: bytes, place: Place) -> int:
    """The number there."""
    return int.from_bytes(data[place.start : place.start + place.size], "little")


def with_value(data: bytes, place: Place, value: int) -> bytes:
    """`data` with another number there; of one that is too large, what there is room for."""
    written = (value & (1 << 8 * place.size) - 1).to_bytes(place.size, "little")
    return data[: place.start] + written + data[place.start + place.size :]


def _field_of(message: Decoded, name: str) -> Field | None:
    if name.startswith("@"):
        return Field(name, "u8", int(name[1:]), 1)
    if name in _HEADER or message.rule is None:
        return _HEADER.get(name)
    payload = message.rule.payload if message.message.asks else type(message.body) if message.body else None
    for field in layout_of(payload):
        if field.name == name and field.size in _WHOLE_NUMBERS:
            return field._replace(offset=HEADER_SIZE + field.offset)
    return None


def _check_field(parts: Parts, name: str) -> None:
    rules = [*FRONTEND.values(), *BACKEND.values()]
    layouts = [layout_of(payload) for rule in rules for payload in (rule.payload, rule.answer)]
    known = {field.name for layout in layouts for field in layout if field.size in _WHOLE_NUMBERS} | set(_HEADER)
    if not name.startswith("@") and name not in known:
        near = get_close_matches(name, known, 1)
        parts._replace(value=name).fail(
            f"no message has a field {name[:40]!a}" + (f"; did you mean {near[0]}?" if near else "")
        )


def _takes_no_value(parts: Parts) -> None:
    if parts.value is not None:
        parts.fail(f"{parts.name} takes no value")


def _number(parts: Parts, text: str, start: int = 0) -> int:
    """A number, decimal or 0x hexadecimal, below 2^64."""
    if not re.fullmatch(r"\d{1,20}|0x[0-9a-fA-F]{1,16}", text, re.ASCII):
        parts.fail("expected a number, decimal or 0x hexadecimal", text, parts.at + start)
    return int(text, 16 if text.startswith("0x") else 10)
