"""What a tracer prints, one line an item, as strace shows system calls; and the same as a JSON object.

A line is made of pieces, each of them plain before it is painted: no terminal obeys what a peer sent. Every piece has a
longest length, so a line has one, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..limited_log import printable
from ..protocol.numbers import KNOWN_FLAGS, NEED_REPLY
from ..protocol.state import Role
from .conversation import Exchange, Item
from .event import Offered, Remark, Remarkable, Used
from .flat import as_json
from .history import status_in_words
from .phrases import LONGEST, cut, fds_in_words, payload_in_words
from .requests import words_of

__all__ = ("ARROWS", "Lines", "as_json", "duration")

ARROWS: Final = {Role.FRONTEND: "F→B", Role.BACKEND: "B→F"}
_PLAIN, _BOLD, _DIM, _RED, _YELLOW, _CYAN, _GREEN = "", "1", "2", "31", "33", "36", "32"
_DIRECTIONS: Final = {Role.FRONTEND: _CYAN, Role.BACKEND: _GREEN}
_SECOND: Final = 1_000_000_000


class Piece(NamedTuple):
    """A few words of a line, and how they are painted."""

    text: str
    colour: str = _PLAIN


class Lines:
    """Makes a line of each item; times are seconds since `began` (else the first item), or the day and time in UTC."""

    def __init__(self, *, colour: bool, absolute: bool = False, began: int | None = None) -> None:
        self._colour, self._absolute, self._began = colour, absolute, began

    def line(self, item: Item) -> str | None:
        """The line of an item, without a newline; None for what is not worth one."""
        return " ".join(self._painted(piece) for piece in self._pieces(item) if piece.text)

    def json(self, item: Item) -> dict[str, object]:
        """The item as a flat object, its time as on its line."""
        return as_json(item, began=None if self._absolute else self.begin(item.at))

    def _painted(self, piece: Piece) -> str:
        text = printable(piece.text)
        return f"\033[{piece.colour}m{text}\033[0m" if self._colour and piece.colour else text

    def _pieces(self, item: Item) -> Iterator[Piece]:
        yield Piece(self._time(item.at), _DIM)
        match item:
            case Exchange():
                yield from _connection(item.message.connection)
                yield from _exchange(item)
            case Remark():
                yield from _remark(item)
            case Offered() | Used():
                yield from _connection(item.connection)
                words = cut(words_of(item), LONGEST)
                yield from _offered(item, words) if isinstance(item, Offered) else _used(item, words)

    def _time(self, at: int) -> str:
        if not self._absolute:
            return f"{(at - self.begin(at)) / _SECOND:.4f}".replace("-0.0000", "0.0000")
        try:
            return f"{datetime.fromtimestamp(at // 1000 / 1e6, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        except (ValueError, OverflowError, OSError):
            return f"{at / _SECOND:.6f}"

    def begin(self, at: int) -> int:
        """When it began: `at`, if that is the first thing that happened."""
        if self._began is None:
            self._began = at
        return self._began


def duration(nanoseconds: int) -> str:
    """A time for people: `800 ns`, `31 µs`, `4.2 ms`, `5.0 s`."""
    value = float(nanoseconds)
    for unit in ("ns", "µs", "ms"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if abs(value) >= 9.95 or unit == "ns" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} s"


def _connection(connection: int) -> Iterator[Piece]:
    """The first connection needs no number; nearly always it is the only one."""
    if connection:
        yield Piece(f"#{connection}", _DIM)


def _exchange(exchange: Exchange) -> Iterator[Piece]:
    message = exchange.message
    yield Piece(ARROWS[message.sender], _DIRECTIONS[message.sender])
    yield Piece(exchange.request.name, _BOLD)
    if exchange.orphan and message.whole:
        yield Piece("reply", _YELLOW)
    yield Piece(payload_in_words(exchange.request))
    yield Piece(fds_in_words(message.fds))
    if message.flags & NEED_REPLY and message.whole:
        yield Piece("need_reply")
    if message.flags & ~KNOWN_FLAGS and message.whole:
        yield Piece(f"flags={message.flags:#x}")
    yield from _result(exchange)
    yield from _complaints(exchange)


def _result(exchange: Exchange) -> Iterator[Piece]:
    """What came of a request: ` = 0 <31 µs>`."""
    if exchange.unanswered:
        yield Piece("= ?", _YELLOW)
        waited = f" in {duration(exchange.waited)}" if exchange.waited is not None else ""
        yield Piece(f"<no reply{waited}>", _YELLOW)
        return
    reply = exchange.reply
    if reply is None:
        return
    yield Piece("=")
    yield Piece(_answer(exchange), _RED if exchange.refused else _PLAIN)
    yield Piece(fds_in_words(reply.message.fds))
    if exchange.latency is not None:
        yield Piece(f"<{duration(exchange.latency)}>", _DIM)


def _answer(exchange: Exchange) -> str:
    status = exchange.status
    if status is not None:
        named = status_in_words(status)
        return str(status) if named == str(status) else f"{status} ({named})"
    if exchange.refused:
        return "refused: an empty payload"
    if exchange.reply is None:
        return ""
    words = payload_in_words(exchange.reply)
    return words or ("" if exchange.reply.message.fds else "an empty payload")


def _complaints(exchange: Exchange) -> Iterator[Piece]:
    """What is wrong with either message, and what was done to it on its way."""
    if exchange.orphan and exchange.message.whole:
        yield Piece("answers no request", _YELLOW)
    for fault in exchange.faults:
        yield Piece(f"malformed: {cut(fault, LONGEST)}", _RED)
    for each in (exchange.request, exchange.reply):
        if each and each.message.note:
            yield Piece(f"[{cut(each.message.note, LONGEST)}]", _YELLOW)


def _remark(remark: Remark) -> Iterator[Piece]:
    wrong = remark.about in (Remarkable.BROKEN, Remarkable.LOST)
    what = f"connection {remark.connection} {remark.about.value}"
    yield Piece("---", _DIM)
    yield Piece(f"{what}: {cut(remark.text, LONGEST)}" if remark.text else what, _RED if wrong else _PLAIN)


def _offered(offered: Offered, words: str) -> Iterator[Piece]:
    yield Piece(f"queue {offered.queue} →", _CYAN)
    yield Piece(f"head={offered.head} {words}")


def _used(used: Used, words: str) -> Iterator[Piece]:
    yield Piece(f"queue {used.queue} ←", _GREEN)
    yield Piece(f"head={used.head} {words}")
    if used.after >= 0:
        yield Piece(f"<{duration(used.after)}>", _DIM)
