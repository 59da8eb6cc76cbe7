"""Names of extended attributes: what a guest calls them, and what they are called on the host (`--xattrmap`).

A map is a list of rules, of which the first that matches a name decides. A rule is `:type:scope:key:prepend:`, with any
separator. Names from the client, the guest, are matched with the key; names from the server, the host, with what the rule
prepends. `:map:key:prepend:`, the last rule, stands for several: those that prefix the names with that key, and keep what
others might pretend to be in the way of both sides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What a rule does with a name that it matches."""

    PREFIX = "prefix"
    OK = "ok"
    BAD = "bad"
    UNSUPPORTED = "unsupported"


class Scope(Enum):
    """Whose names a rule is for."""

    CLIENT = "client"
    SERVER = "server"
    ALL = "all"


MAP: Final = "map"
_FIELDS: Final = ("type", "scope", "key", "prepend")
_MAP_FIELDS: Final = ("type", "key", "prepend")
_DENIALS: Final = {Kind.BAD: errno.EPERM, Kind.UNSUPPORTED: errno.EOPNOTSUPP}


class XattrMapError(ValueError):
    """A rule that is none: where in its text, and what is wrong there."""

    def __init__(self, number: int, rule: str, start: int, width: int, problem: str) -> None:
        super().__init__(f"rule {number}: {rule!a}: {problem}")
        self.number, self.rule, self.start, self.width, self.problem = number, rule, start, width, problem


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a map."""

    kind: Kind
    scope: Scope
    key: bytes
    prepend: bytes

    def for_client(self, name: bytes) -> bool:
        """It decides on this name from the guest."""
        return self.scope is not Scope.SERVER and name.startswith(self.key)

    def for_server(self, name: bytes) -> bool:
        """It decides on this name from the host."""
        return self.scope is not Scope.CLIENT and name.startswith(self.prepend)


@dataclass(frozen=True, slots=True)
class XattrMap:
    """The rules, in order."""

    rules: tuple[Rule, ...]

    def client_to_host(self, name: bytes) -> bytes:
        """The host's name for what the guest calls `name`. OSError, EPERM or EOPNOTSUPP, if the guest may not use it."""
        rule = next((rule for rule in self.rules if rule.for_client(name)), None)
        if rule is None or rule.kind in _DENIALS:
            number = _DENIALS[rule.kind] if rule else errno.EPERM
            raise OSError(number, os.strerror(number))
        return rule.prepend + name if rule.kind is Kind.PREFIX else name

    def host_to_client(self, name: bytes) -> bytes | None:
        """The guest's name for what is called `name` on the host; None if the guest does not see it."""
        rule = next((rule for rule in self.rules if rule.for_server(name)), None)
        if rule is None or rule.kind in _DENIALS:
            return None
        return name[len(rule.prepend) :] if rule.kind is Kind.PREFIX else name


def parse_xattrmap(text: str) -> XattrMap:
    """The map that `text` describes. Raises XattrMapError."""
    rules: list[Rule] = []
    rest, mapped = text.strip(), False
    number = 0
    while rest:
        number += 1
        fields, used = _fields(number, rest)
        if mapped:
            raise XattrMapError(number, rest[:used], 0, used, "the rule 'map' must be the last one")
        mapped = fields[0] == MAP
        rules += _map_rules(fields) if mapped else [_rule(number, rest[:used], fields)]
        rest = rest[used:].lstrip()
    _check_catch_all(rules, number, text)
    return XattrMap(tuple(rules))


def _fields(number: int, text: str) -> tuple[list[str], int]:
    """The fields of the rule that `text` begins with, and how many characters it has."""
    separator, at = text[0], 1
    fields: list[str] = []
    names: tuple[str, ...] = _FIELDS
    while len(fields) < len(names):
        end = text.find(separator, at)
        if end < 0:
            raise _unfinished(number, text, at, names[len(fields)])
        fields.append(text[at:end])
        names = _MAP_FIELDS if fields[0] == MAP else _FIELDS
        at = end + 1
    return fields, at


def _unfinished(number: int, text: str, at: int, field: str) -> XattrMapError:
    """The rule ends within a field, or before it."""
    if at == len(text):
        problem = f"expected the field {field!r} and a closing {text[0]!r}"
    else:
        problem = f"expected a closing {text[0]!r} after the field {field!r}"
    return XattrMapError(number, text, at, max(len(text) - at, 1), problem)


def _rule(number: int, text: str, fields: list[str]) -> Rule:
    kind, scope, key, prepend = fields
    kinds, scopes = [each.value for each in Kind], [each.value for each in Scope]
    if kind not in kinds:
        raise XattrMapError(number, text, 1, max(len(kind), 1), f"no type; there are {', '.join([*kinds, MAP])}")
    if scope not in scopes:
        start = len(kind) + 2
        raise XattrMapError(number, text, start, max(len(scope), 1), f"no scope; there are {', '.join(scopes)}")
    return Rule(Kind(kind), Scope(scope), os.fsencode(key), os.fsencode(prepend))


def _map_rules(fields: list[str]) -> Iterator[Rule]:
    """What `map` is short for."""
    key, prepend = (os.fsencode(field) for field in fields[1:])
    yield Rule(Kind.PREFIX, Scope.ALL, key, prepend)
    if not key:
        yield Rule(Kind.BAD, Scope.ALL, b"", b"")
        return
    yield Rule(Kind.BAD, Scope.SERVER, b"", key)
    yield Rule(Kind.BAD, Scope.CLIENT, prepend, b"")
    yield Rule(Kind.OK, Scope.ALL, b"", b"")


def _check_catch_all(rules: list[Rule], number: int, text: str) -> None:
    """Every name must be decided on: by a rule that matches all, in each direction."""
    for side, caught in (("client", Rule.for_client), ("server", Rule.for_server)):
        if not any(caught(rule, b"") for rule in rules):
            problem = f"no rule matches every name from the {side}; end with :ok:all::: or :bad:all:::"
            raise XattrMapError(number, text.strip(), len(text.strip()), 1, problem)
