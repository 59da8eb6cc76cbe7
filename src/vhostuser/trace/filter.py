"""Which items are shown: a small expression over requests, fields and what came of them; `filter_help` is its reference.

The text becomes closures, once. Nesting is bounded, so no text is deep enough to exhaust the stack.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

from .conversation import Item
from .filter_fields import NAMED, OWN, WORDS, Asked, Kind, Test, field_reader
from .filter_values import EXAMPLES, VALUES, Value, equal, meant, number, ordered, request_names, requests

LONGEST: Final = 4096
"""Characters of an expression."""
DEEPEST: Final = 64
"""Parentheses and `not` within each other."""
_WINDOW: Final = 100
"""Characters of an expression that an error shows."""


class FilterError(ValueError):
    """An expression is wrong: what and where, and what was expected."""

    def __init__(self, reason: str, text: str, start: int, end: int) -> None:
        self.reason, self.text, self.start, self.end = reason, text, start, max(end, start + 1)
        super().__init__(f"{reason}, at character {start + 1} of the filter")

    @property
    def underlined(self) -> tuple[str, str]:
        """The expression, or the part of it where the fault is, and a line that underlines the fault."""
        first = max(0, self.start - _WINDOW // 2)
        shown = "".join(char if char.isprintable() else "?" for char in self.text[first : first + _WINDOW])
        marked = min(self.end, first + _WINDOW) - self.start
        return shown, " " * (self.start - first) + "^" * max(1, marked)


class Filter:
    """What an expression means."""

    def __init__(self, text: str, test: Test, clock: _Clock) -> None:
        self.text = text
        self._test, self._clock = test, clock

    def matches(self, item: Item) -> bool:
        """The expression is true of this item."""
        if self._clock.began is None:
            self._clock.began = item.at
        return self._test(item)


class _Clock:
    """When the first item was, for the field `time`."""

    def __init__(self, began: int | None) -> None:
        self.began = began

    def read(self, item: Item) -> Sequence[int]:
        return (item.at - (self.began or 0),)


def parse_filter(text: str, *, began: int | None = None) -> Filter:
    """The filter that `text` describes; its `time` counts from `began`, else from the first item. FilterError if none."""
    clock = _Clock(began)
    return Filter(text, _Parser(text, clock).whole(), clock)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_TOKENS: Final = re.compile(
    r"""\s*(?:(?P<sign>==|!=|<=|>=|&&|\|\||[=<>!(),])|(?P<quoted>"[^"]*"|'[^']*')|(?P<word>[\w*?.:/\[\]-]+)|(?P<end>\Z))"""
)
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SIGNS: Final = frozenset({"==", "=", "!=", *_COMPARE})
_JOINTS: Final = {"&&": "and", "||": "or", "!": "not"}
_RESERVED: Final = frozenset({"and", "or", "not", "in"})


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place = 0
    while not found or found[-1].kind != "end":
        match = _TOKENS.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            what = "the quotation does not end" if text[start] in "\"'" else f"{text[start]!a} means nothing here"
            raise FilterError(what, text, start, start + 1)
        kind = match.lastgroup or "end"
        place = match.end()
        shown = _JOINTS.get(match[kind], match[kind])
        found.append(_Token("word" if shown in _RESERVED else kind, shown, match.start(kind), place))
    return found


class _Parser:
    """Reads an expression from left to right."""

    def __init__(self, text: str, clock: _Clock) -> None:
        if len(text) > LONGEST:
            raise FilterError(f"the filter has {len(text)} characters, more than {LONGEST}", text, LONGEST, LONGEST + 1)
        self._text, self._clock = text, clock
        self._left = _tokens(text)[::-1]
        self._depth = 0

    def whole(self) -> Test:
        """All of the text."""
        test = self._either()
        if self._next.kind != "end":
            self._fail("expected `and`, `or` or the end")
        return test

    @property
    def _next(self) -> _Token:
        return self._left[-1]

    def _take(self) -> _Token:
        return self._left.pop() if len(self._left) > 1 else self._next

    def _fail(self, reason: str, token: _Token | None = None) -> NoReturn:
        token = token or self._next
        raise FilterError(reason, self._text, token.start, token.end)

    def _at(self, word: str) -> bool:
        return self._next.kind == "word" and self._next.text == word

    def _sign(self, sign: str) -> bool:
        return self._next.kind == "sign" and self._next.text == sign

    def _either(self) -> Test:
        tests = [self._both()]
        while self._at("or"):
            self._take()
            tests.append(self._both())
        return _any(tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._at("and"):
            self._take()
            tests.append(self._one())
        return _all(tests)

    def _one(self) -> Test:
        """A word, a comparison, or what is in parentheses."""
        if self._at("not"):
            return self._negated()
        if self._sign("("):
            return self._enclosed()
        if self._next.kind != "word" or self._next.text in _RESERVED:
            self._fail("expected a request, a word or a comparison")
        token = self._take()
        if self._next.kind == "sign" and self._next.text in _SIGNS:
            return self._comparison(token)
        if self._at("in"):
            return self._membership(token)
        return self._bare(token)

    def _negated(self) -> Test:
        self._deeper()
        self._take()
        test = self._one()
        self._depth -= 1
        return lambda item: not test(item)

    def _enclosed(self) -> Test:
        self._deeper()
        opened = self._take()
        test = self._either()
        if self._next.kind == "end":
            self._fail("this parenthesis is never closed", opened)
        if not self._sign(")"):
            self._fail("expected `and`, `or` or )")
        self._take()
        self._depth -= 1
        return test

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(f"nested more than {DEEPEST} deep")

    def _bare(self, token: _Token) -> Test:
        """A word that is true or not, or a request's name."""
        if token.text in WORDS:
            return WORDS[token.text][1]
        if token.text in OWN or token.text in NAMED or token.text == "time":
            self._fail(f"expected a comparison after {token.text}, such as {token.text}==...")
        names = None if number(token.text) is not None else requests(token.text)
        if names is None:
            known = [*WORDS, *request_names(), *OWN, *NAMED]
            self._fail(f"there is no request or word {token.text[:40]!a}{meant(token.text, known)}", token)
        return equal(OWN["request"].read, names)

    def _field(self, token: _Token) -> Asked:
        if token.text == "time":
            return Asked(Kind.TIME, "", self._clock.read)
        if token.text in OWN:
            return OWN[token.text]
        if token.text not in NAMED:
            self._fail(f"there is no field {token.text[:40]!a}{meant(token.text, [*OWN, *NAMED, 'time'])}", token)
        return Asked(NAMED[token.text], "", field_reader(token.text))

    def _comparison(self, token: _Token) -> Test:
        asked, sign = self._field(token), self._take()
        if sign.text in _COMPARE:
            return self._ordered(asked, sign)
        read, same = asked.read, equal(asked.read, self._value(asked.kind))
        return same if sign.text != "!=" else lambda item: bool(read(item)) and not same(item)

    def _ordered(self, asked: Asked, sign: _Token) -> Test:
        if asked.kind in (Kind.TEXT, Kind.REQUEST, Kind.SIDE):
            self._fail("names are compared with ==, != and in", sign)
        return ordered(asked.read, _COMPARE[sign.text], self._value(asked.kind))

    def _membership(self, token: _Token) -> Test:
        asked = self._field(token)
        self._take()
        if not self._sign("("):
            self._fail("expected ( and a list of values")
        self._take()
        tests = [equal(asked.read, self._value(asked.kind))]
        while self._sign(","):
            self._take()
            tests.append(equal(asked.read, self._value(asked.kind)))
        if not self._sign(")"):
            self._fail("expected , or )")
        self._take()
        return _any(tests)

    def _value(self, kind: Kind) -> Value:
        if self._next.kind not in ("word", "quoted"):
            self._fail(f"expected {kind.value}")
        token = self._take()
        text = token.text[1:-1] if token.kind == "quoted" else token.text
        found = VALUES[kind](text)
        if found is None:
            self._fail(f"expected {kind.value}, not {text[:40]!a}{meant(text, EXAMPLES.get(kind, ()))}", token)
        return found


def _all(tests: list[Test]) -> Test:
    return tests[0] if len(tests) == 1 else lambda item: all(test(item) for test in tests)


def _any(tests: list[Test]) -> Test:
    return tests[0] if len(tests) == 1 else lambda item: any(test(item) for test in tests)
