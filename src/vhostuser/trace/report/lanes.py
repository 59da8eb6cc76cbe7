"""The rows of the sequence lanes: one a request, with its reply, and one a request of a queue."""

from __future__ import annotations

from typing import Final

from ...limited_log import printable
from ...protocol.numbers import NEED_REPLY
from ...protocol.state import Role
from ..conversation import Exchange, Item
from ..decoded import Decoded
from ..event import FdNote, Message, Offered, Remark, Used
from ..words import in_words
from .columns import Columns, Table, Texts

ASKED, REFUSED, FAULTY, ORPHAN, UNANSWERED, ALTERED = 1, 2, 4, 8, 16, 32
"""What a row's flags say: a reply is owed, it was a no, something is malformed, nobody asked, nobody answered, altered."""
FORWARD, BACKWARD, QUEUE, REMARK = 0, 1, 2, 3
"""Who speaks first: the front-end, the back-end, the driver by a ring, or nobody."""
LONGEST: Final = 400
"""Characters of a row's words."""


class Lanes:
    """Rows in the order of their requests."""

    def __init__(self, texts: Texts, most: int) -> None:
        self.left_out = 0
        self._texts, self._most = texts, most
        # Time, latency, lane, connection, messages of request and reply, name, words of both, flags
        self._table = Table("t", "r", "d", "c", "i", "j", "k", "w", "a", "f")
        self._offered: dict[tuple[int, int, int, int], int] = {}
        """Rows of requests in rings that are not given back yet, by connection, queue, head, and when they were offered."""

    def take(self, item: Item) -> None:
        """One item of the conversation."""
        if isinstance(item, Used) and self._given_back(item):
            return
        if len(self._table) >= self._most:
            self.left_out += 1
            return
        match item:
            case Exchange():
                self._exchange(item)
            case Offered():
                self._offered[_key(item)] = self._other(
                    item.at, QUEUE, item.connection, f"queue {item.queue}", _offered(item)
                )
            case Used():
                self._other(item.at, QUEUE, item.connection, f"queue {item.queue}", _used(item))
            case Remark():
                self._other(item.at, REMARK, item.connection, item.about.value, item.text)

    def columns(self, began: int) -> Columns:
        """All rows by their time, which counts from `began` on."""
        columns = self._table.columns
        times = columns["t"]
        order = sorted(range(len(times)), key=lambda row: (times[row], columns["i"][row]))
        found = {name: [column[row] for row in order] for name, column in columns.items()}
        return found | {"t": [int(at) - began for at in found["t"]]}

    def _exchange(self, exchange: Exchange) -> None:
        message, reply, number = exchange.message, exchange.reply, self._texts.number
        lane = FORWARD if message.sender is Role.FRONTEND else BACKWARD
        latency = -1 if exchange.latency is None else exchange.latency
        indices = (exchange.index, reply.index if reply else -1)
        words = (number(_name(exchange)), number(_request(exchange.request)), number(_answer(exchange)))
        self._table.add(message.at, latency, lane, message.connection, *indices, *words, _flags(exchange))

    def _other(self, at: int, lane: int, connection: int, name: str, words: str) -> int:
        number = self._texts.number
        return self._table.add(at, -1, lane, connection, -1, -1, number(name), number(_short(words)), number(""), 0)

    def _given_back(self, used: Used) -> bool:
        """It ends a request that has a row."""
        row = self._offered.pop(_key(used.asked), None) if used.asked else None
        if row is None:
            return False
        columns = self._table.columns
        columns["r"][row] = max(0, used.at - int(columns["t"][row]))
        columns["a"][row] = self._texts.number(_used(used))
        columns["f"][row] = ASKED
        return True


def _key(offered: Offered) -> tuple[int, int, int, int]:
    return offered.connection, offered.queue, offered.head, offered.at


def _name(exchange: Exchange) -> str:
    return f"{exchange.request.name} reply" if exchange.orphan else exchange.request.name


def _flags(exchange: Exchange) -> int:
    altered = exchange.message.note or (exchange.reply and exchange.reply.message.note)
    return (
        (ASKED if exchange.reply or exchange.unanswered else 0)
        | (REFUSED if exchange.refused else 0)
        | (FAULTY if exchange.faults else 0)
        | (ORPHAN if exchange.orphan else 0)
        | (UNANSWERED if exchange.unanswered else 0)
        | (ALTERED if altered else 0)
    )


def _request(request: Decoded) -> str:
    message = request.message
    marks = "need_reply" if message.asks and message.flags & NEED_REPLY else ""
    words = [_body(request), *(_fd(note) for note in message.fds), marks, _note(message)]
    return _short(" ".join(filter(None, words)))


def _answer(exchange: Exchange) -> str:
    reply = exchange.reply
    if reply is None:
        return "no reply" if exchange.unanswered else ""
    if exchange.status is not None:
        words = str(exchange.status) if exchange.status < 1 << 32 else hex(exchange.status)
    else:
        words = _body(reply)
    return _short(" ".join(filter(None, [words, *(_fd(note) for note in reply.message.fds), _note(reply.message)])))


def _body(decoded: Decoded) -> str:
    """The payload in words, or what is wrong with it."""
    if decoded.fault:
        return f"{decoded.fault}: {decoded.message.payload[:32].hex()}"
    return in_words(decoded.rule, decoded.body) if decoded.rule else decoded.message.payload[:32].hex()


def _fd(note: FdNote) -> str:
    return f"fd={note.number}<{note.path or note.kind}{f' ino {note.ino}' if note.ino else ''}>"


def _note(message: Message) -> str:
    return f"[{message.note}]" if message.note else ""


def _offered(item: Offered) -> str:
    readable = sum(each.len for each in item.buffers if not each.writable)
    writable = sum(each.len for each in item.buffers if each.writable)
    return f"head {item.head}: {readable} bytes to read, {writable} to write; begins {item.start[:16].hex()}"


def _used(item: Used) -> str:
    return f"head {item.head}: {item.written} bytes written"


def _short(text: str) -> str:
    text = text if text.isprintable() else printable(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
