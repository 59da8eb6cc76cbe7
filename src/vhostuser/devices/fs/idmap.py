"""Owners of files: ids of the guest's users on the host and back (`--translate-uid`, `--translate-gid`).

A rule is `type:base:target:count`. An id that no rule speaks of is the same on both sides, as is the one that means none.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

NONE: Final = 0xFFFF_FFFF
"""No id: all below are some."""


@dataclass(frozen=True, slots=True)
class Range:
    """`count` ids from `base` on: each becomes the one as far behind `target`, or all `target`, or none may be used."""

    base: int
    count: int
    target: int | None
    squash: bool = False

    def translate(self, id: int) -> int:
        """What `id`, which is in the range, becomes. OSError, EPERM, if it may not be used."""
        if self.target is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self.target if self.squash else self.target + id - self.base


@dataclass(frozen=True, slots=True)
class IdMap:
    """Both directions, each in order of its ranges, which don't overlap."""

    guest: tuple[Range, ...] = ()
    host: tuple[Range, ...] = ()

    def to_host(self, id: int) -> int:
        """The host's id for that of the guest. OSError, EPERM, if the guest may not use it."""
        return _translate(self.guest, id)

    def to_guest(self, id: int) -> int:
        """The guest's id for that of the host."""
        return _translate(self.host, id)


IDENTITY: Final = IdMap()
"""Every id is the same on both sides."""


def _translate(ranges: Sequence[Range], id: int) -> int:
    at = bisect_right(ranges, id, key=lambda each: each.base) - 1
    if at >= 0 and id - ranges[at].base < ranges[at].count:
        return ranges[at].translate(id)
    return id


Directions = tuple[list[Range], list[Range]]


def _map(base: int, target: int, count: int) -> Directions:
    return [Range(base, count, target)], [Range(target, count, base)]


_TYPES: Final[dict[str, Callable[[int, int, int], Directions]]] = {
    "guest": lambda base, target, count: ([Range(base, count, target)], []),
    "host": lambda base, target, count: ([], [Range(base, count, target)]),
    "squash-guest": lambda base, target, count: ([Range(base, count, target, squash=True)], []),
    "squash-host": lambda base, target, count: ([], [Range(base, count, target, squash=True)]),
    "map": _map,
}
FORBID: Final = "forbid-guest"


def parse_idmap(rules: Iterable[str]) -> IdMap:
    """The map that these rules make together. ValueError says which is wrong, and how."""
    guest: list[Range] = []
    host: list[Range] = []
    for rule in rules:
        to_host, to_guest = _parse(rule)
        guest += to_host
        host += to_guest
    return IdMap(_ordered("guest", guest), _ordered("host", host))


def _parse(rule: str) -> Directions:
    """The ranges of one rule."""
    kind, *fields = rule.split(":")
    if kind != FORBID and kind not in _TYPES:
        raise ValueError(f"{rule[:80]!a}: no type {kind[:20]!a}; there are {', '.join([*_TYPES, FORBID])}")
    names = ("base", "count") if kind == FORBID else ("base", "target", "count")
    if len(fields) != len(names):
        raise ValueError(f"{rule[:80]!a} is not {':'.join([kind, *names])}")
    numbers = [_number(rule, *each) for each in zip(names, fields, strict=True)]
    base, count = numbers[0], numbers[-1]
    _check_end(rule, "base", base, count)
    if kind == FORBID:
        return [Range(base, count, None)], []
    if not kind.startswith("squash"):
        _check_end(rule, "target", numbers[1], count)
    return _TYPES[kind](base, numbers[1], count)


def _number(rule: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > NONE:
        raise ValueError(f"{rule[:80]!a}: {name} {text[:20]!a} is no number up to {NONE}")
    if name == "count" and not int(text):
        raise ValueError(f"{rule[:80]!a}: count 0 is no range")
    if name == "target" and int(text) == NONE:
        raise ValueError(f"{rule[:80]!a}: target {text} is no id")
    return int(text)


def _check_end(rule: str, name: str, base: int, count: int) -> None:
    if base + count > NONE:
        raise ValueError(f"{rule[:80]!a}: {name} {base} + count {count} passes {NONE}, which is no id")


def _ordered(side: str, ranges: list[Range]) -> tuple[Range, ...]:
    """The ranges in order; ValueError if two speak of the same id."""
    ranges = sorted(ranges, key=lambda each: each.base)
    for before, after in pairwise(ranges):
        if before.base + before.count > after.base:
            end = before.base + before.count - 1
            raise ValueError(f"two rules translate the {side}'s id {after.base}: one range is {before.base} to {end}")
    return tuple(ranges)
