"""The text of a rule for `--inject`: what to do, to which messages, how often; and where such a text is wrong.

    ACTION[@reply][:FILTER[:COUNT]]

A rule is about requests, or with `@reply` about replies. FILTER is the one of `-e`; without it all messages match. COUNT is
which of those that match: `3` the third, `3+` all from the third, `/3` every third.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from .filter import Filter, FilterError, parse_filter

GRAMMAR: Final = """\
RULE is ACTION[@reply][:FILTER[:COUNT]]. It is about requests, or with @reply about replies; FILTER is that of -e, and
without one every message matches. COUNT: 3 for the third that matches, 3+ for all from the third, /3 for every third.

  delay=TIME         hold it, and what comes behind it: 10ms, 500us, 1.5s
  drop               do not pass it on
  refuse=STATUS      do not pass it on, and acknowledge it in the peer's stead, with a number that is not 0 (default 1)
  corrupt=FIELD=N    write N into a field: by the specification's name, header.request, header.flags or header.size, or @12
                     for the byte at offset 12; FIELD^N flips those bits
  truncate=N         pass on only the first N bytes
  close              end the connection

  --inject delay=10ms:SHMEM_MAP             --inject 'refuse=12:SHMEM_MAP and len>2M:3'
  --inject corrupt=len^1:SHMEM_MAP:/10      --inject drop@reply:GET_CONFIG
"""
_RULE: Final = re.compile(
    r"(?P<name>[a-z]*)(?:=(?P<value>[^@:]*(?:@\d[^@:]*)?))?(?P<reply>@reply)?(?P<rest>:.*|\Z)", re.DOTALL
)
_COUNT: Final = re.compile(r"(?P<every>/)?(?P<number>\d{1,9})(?P<on>\+)?")


class RuleError(ValueError):
    """A rule means nothing: why, and where in its text."""

    def __init__(self, reason: str, text: str, start: int, end: int) -> None:
        self.reason, self.text = reason, text
        self._place = FilterError(reason, text, start, end)
        super().__init__(reason)

    @property
    def underlined(self) -> tuple[str, str]:
        """The rule, and a line that underlines the fault."""
        return self._place.underlined


class Count(NamedTuple):
    """Which of the messages that match: number `first`, with `on` those behind it too, with `every` each that it divides."""

    first: int = 1
    on: bool = True
    every: bool = False

    def includes(self, number: int) -> bool:
        """The match with this number, from 1, is one of them."""
        if self.every:
            return number % self.first == 0
        return number >= self.first if self.on else number == self.first


class Parts(NamedTuple):
    """A rule cut into its parts."""

    text: str
    name: str
    value: str | None
    at: int
    """Where the value begins."""
    on_reply: bool
    filter: Filter | None
    which: Count

    def fail(self, reason: str, what: str | None = None, at: int | None = None) -> NoReturn:
        """The value, or the part `what` of it or of the text, is wrong."""
        what, start = self.value or "" if what is None else what, self.at if at is None else at
        raise RuleError(reason, self.text, start, start + len(what))


def cut(text: str) -> Parts:
    """The parts of a rule. RuleError if it has no such form, or its filter means nothing."""
    found = _RULE.fullmatch(text)
    if not found:
        start = next((at for at, char in enumerate(text) if char not in "abcdefghijklmnopqrstuvwxyz"), len(text))
        raise RuleError("expected ACTION[=VALUE][@reply][:FILTER[:COUNT]]", text, start, len(text))
    wanted, which = _filter_and_count(text, found["rest"][1:], found.start("rest") + 1)
    start = found.start("value") if found["value"] is not None else len(found["name"])
    return Parts(text, found["name"], found["value"], start, bool(found["reply"]), wanted, which)


def _filter_and_count(text: str, rest: str, at: int) -> tuple[Filter | None, Count]:
    """What follows an action, at `at` of the text. A filter may have colons of its own, in quotation marks."""
    body, colon, last = rest.rpartition(":")
    if _COUNT.fullmatch(last):
        return _filter(text, body, at), _count(text, last, at + len(rest) - len(last))
    try:
        return _filter(text, rest, at), Count()
    except RuleError:
        if colon and _filter(text, body, at):
            _count(text, last, at + len(body) + 1)
        raise


def _count(text: str, word: str, at: int) -> Count:
    found = _COUNT.fullmatch(word)
    if not found or (found["every"] and found["on"]) or not int(found["number"]):
        raise RuleError("expected a count: 3, 3+ or /3", text, at, at + len(word))
    return Count(int(found["number"]), on=bool(found["on"]), every=bool(found["every"]))


def _filter(text: str, wanted: str, at: int) -> Filter | None:
    if not wanted.strip():
        return None
    try:
        return parse_filter(wanted)
    except FilterError as error:
        raise RuleError(error.reason, text, at + error.start, at + error.end) from None
