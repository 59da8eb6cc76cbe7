"""What a filter compares a field with: numbers, times, names and patterns of names."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import translate
from typing import Final

from ..protocol.rules import RULES, Channel
from .filter_fields import Kind, Reader, Test

Value = int | frozenset[str] | re.Pattern[str]
"""What a field is compared with: a number, names, or a pattern of names."""
_LONGEST_NUMBER: Final = 24
_LONGEST_NAME: Final = 256
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE: Final = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE | re.ASCII)
_HEX: Final = re.compile(r"0x[0-9a-f]+", re.IGNORECASE | re.ASCII)
_TIME: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|µs|ms|s)", re.ASCII)
_NANOSECONDS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_SIDES: Final = {
    "front-end": Channel.FRONTEND,
    "frontend": Channel.FRONTEND,
    "main": Channel.FRONTEND,
    "back-end": Channel.BACKEND,
    "backend": Channel.BACKEND,
}
_NAMES: Final = tuple(dict.fromkeys(rule.name for rules in RULES.values() for rule in rules.values()))


def request_names() -> tuple[str, ...]:
    """The names of all requests of both channels."""
    return _NAMES


def number(text: str) -> int | None:
    """A number or a size; None if it is none."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if _HEX.fullmatch(text):
        return int(text, 16)
    found = _SIZE.fullmatch(text)
    return int(found[1]) << _UNITS[found[2].upper()] if found else None


def time(text: str) -> int | None:
    """A time in nanoseconds; None if it is none."""
    found = _TIME.fullmatch(text)
    return round(float(found[1]) * _NANOSECONDS[found[2]]) if found else None


def answer(text: str) -> int | None:
    """A number, or an errno as the answer has it: negative, in 64 bits."""
    code = next((code for code, name in errno.errorcode.items() if name == text.removeprefix("-").upper()), None)
    return number(text) if code is None else (1 << 64) - code


def requests(text: str) -> Value | None:
    """The requests that a name, a pattern or a number means; None if there is no such request."""
    value = number(text)
    if value is not None:
        named = [rules[value].name for rules in RULES.values() if value in rules]
        return frozenset([*named, f"request {value}"])
    pattern = names(text.upper().removeprefix("VHOST_USER_").removeprefix("BACKEND_"))
    if isinstance(pattern, re.Pattern):
        return frozenset(name for name in _NAMES if pattern.match(name)) or None
    return pattern if pattern and pattern <= frozenset(_NAMES) else None


def names(text: str) -> frozenset[str] | re.Pattern[str] | None:
    """A name, or a pattern of names; None if it is too long."""
    if len(text) > _LONGEST_NAME:
        return None
    return re.compile(translate(text)) if set(text) & set("*?[") else frozenset([text])


def side(text: str) -> frozenset[str] | None:
    """One of the two sides, by any name that it has."""
    found = _SIDES.get(text.lower())
    return frozenset([found.value]) if found else None


VALUES: Final[dict[Kind, Callable[[str], Value | None]]] = {
    Kind.NUMBER: number,
    Kind.TIME: time,
    Kind.TEXT: names,
    Kind.REQUEST: requests,
    Kind.SIDE: side,
    Kind.ANSWER: answer,
    Kind.NAMED: lambda text: names(text) if number(text) is None else number(text),
}
"""How a value is read, by what the field is compared with. None is no value."""
EXAMPLES: Final[dict[Kind, tuple[str, ...]]] = {Kind.REQUEST: _NAMES, Kind.SIDE: ("front-end", "back-end")}


def meant(text: str, known: Iterable[str]) -> str:
    """`; did you mean SHMEM_MAP?`, where something that is known is like `text`."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(text[:_LONGEST_NAME].lower(), by_lower, 1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def equal(read: Reader, value: Value) -> Test:
    """One of the values of a field is this one."""
    if isinstance(value, int):
        return lambda item: value in read(item)
    if isinstance(value, frozenset):
        return lambda item: any(each in value for each in read(item))
    match = value.match
    return lambda item: any(isinstance(each, str) and match(each) is not None for each in read(item))


def ordered(read: Reader, compare: Callable[[int, int], bool], limit: Value) -> Test:
    """One of the numbers of a field compares so with this one."""
    if not isinstance(limit, int):
        return lambda item: False
    return lambda item: any(isinstance(each, int) and compare(each, limit) for each in read(item))
