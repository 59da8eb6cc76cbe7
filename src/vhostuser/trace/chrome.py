"""Captures as Chrome-trace JSON, for ui.perfetto.dev: a track a channel and a queue, arrows from requests to replies.

The letters are those of the "Trace Event Format" of Chromium. Slices of one track may not overlap, so what does goes to
further tracks of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from ..protocol.dialects import RELEASED, Dialect
from ..protocol.rules import Channel
from .conversation import Conversation, Exchange, Item
from .event import Event, Offered, Remark, Used
from .flat import as_json
from .history import History
from .requests import words_of
from .tracks import Json, Tracks

CHANNELS: Final = {Channel.FRONTEND: "main channel", Channel.BACKEND: "back-end channel"}
COUNTER: Final = "mapped bytes"
MOST_OPEN: Final = 65536
"""Requests in rings that are remembered until they are given back."""
ALL: Final = "all connections"
_SHORTEST: Final = 1
"""Nanoseconds that a reply is drawn, so that an arrow has something to end in."""


class Sink(Protocol):
    """Takes text."""

    def write(self, text: str, /) -> int:
        """Take all of it."""


def write_chrome(events: Iterable[Event], file: Sink, *, dialect: Dialect = RELEASED) -> None:
    """Write the trace of a capture, piece by piece as it comes."""
    file.write('{"displayTimeUnit": "ns", "traceEvents": [')
    before = "\n"
    for each in _traced(events, dialect):
        file.write(before + _as_text(each))
        before = ",\n"
    file.write("\n]}\n")


def _as_text(each: Json) -> str:
    """JSON in ASCII, without the halves of characters that undecodable names are kept as: a reader may choke on them."""
    text = json.dumps(each)
    if "\\ud" not in text:
        return text
    return json.dumps(json.loads(json.dumps(each, ensure_ascii=False).encode(errors="replace")))


def _traced(events: Iterable[Event], dialect: Dialect) -> Iterator[Json]:
    conversation, trace = Conversation(dialect), _Trace()
    for event in events:
        trace.begin(event.at)
        for item in conversation.take(event):
            yield from trace.take(item)
    for item in conversation.end():
        yield from trace.take(item)
    yield from trace.end()


class _Trace:
    """Makes events of the trace. Times count from the first event: more digits would not survive."""

    def __init__(self) -> None:
        self._began: int | None = None
        self._tracks = Tracks()
        self._open: dict[tuple[int, int, int, int], str] = {}
        """Requests in words, by connection, queue, head, and when they were offered."""
        self._history = History(keep=False)
        self._mapped = -1
        self._arrows = 0

    def begin(self, at: int) -> None:
        """An event comes; the first one is the beginning."""
        self._began = at if self._began is None else self._began

    def take(self, item: Item) -> Iterator[Json]:
        """The events of an item."""
        match item:
            case Exchange():
                yield from self._exchange(item)
            case Remark():
                about: Json = {"text": item.text}
                yield from self._instant(item.connection, "remarks", item.at, item.about.value, about)
            case Offered():
                if len(self._open) < MOST_OPEN:
                    self._open[_key(item)] = words_of(item)
            case Used():
                yield from self._used(item)
        yield from self._count(item)

    def end(self) -> Iterator[Json]:
        """The requests that were never given back."""
        for (connection, queue, head, at), words in self._open.items():
            yield from self._instant(connection, _queue(queue), at, f"{words}, never used", {"head": head})

    def _exchange(self, exchange: Exchange) -> Iterator[Json]:
        connection, track, name = exchange.message.connection, CHANNELS[exchange.message.channel], exchange.request.name
        about, reply = as_json(exchange), exchange.reply
        if reply is None:
            yield from self._instant(connection, track, exchange.at, name + ", no reply" * exchange.unanswered, about)
            return
        start, end = self._at(exchange.at), self._at(reply.message.at)
        process, title = _process(connection), name + ", refused" * exchange.refused
        asked = self._tracks.slice(process, track, (start, end), title, about)
        answered = self._tracks.slice(process, f"{track}: replies", (end, end + _SHORTEST), name, {})
        yield from self._tracks.told(asked, answered, *self._arrow(asked, answered, name))

    def _arrow(self, asked: Json, answered: Json, name: str) -> Iterator[Json]:
        """From a request to its reply, if both are slices: it binds to nothing else."""
        if not asked["ph"] == answered["ph"] == "X":
            return
        self._arrows += 1
        arrow: Json = {"name": name, "cat": "reply", "id": self._arrows}
        yield arrow | {"ph": "s"} | {key: asked[key] for key in ("pid", "tid", "ts")}
        yield arrow | {"ph": "f", "bp": "e"} | {key: answered[key] for key in ("pid", "tid", "ts")}

    def _used(self, used: Used) -> Iterator[Json]:
        connection, track = used.connection, _queue(used.queue)
        asked = used.asked
        name = words_of(asked) if asked else f"request {used.head}"
        if asked is None and used.after < 0:
            yield from self._instant(connection, track, used.at, name, as_json(used))
            return
        offered = asked.at if asked else used.at - used.after
        if asked:
            self._open.pop(_key(asked), None)
        span = self._at(offered), self._at(used.at)
        slice = self._tracks.slice(_process(connection), track, span, name, as_json(used))
        yield from self._tracks.told(slice)

    def _count(self, item: Item) -> Iterator[Json]:
        """The counter, where it changes."""
        self._history.take(item)
        if self._history.mapped != self._mapped:
            self._mapped = self._history.mapped
            at = self._at(item.settled if isinstance(item, Exchange) else item.at)
            yield from self._tracks.told(self._tracks.counter(ALL, COUNTER, at, {"bytes": self._mapped}))

    def _instant(self, connection: int, track: str, at: int, title: str, about: Json) -> Iterator[Json]:
        return self._tracks.told(self._tracks.instant(_process(connection), track, self._at(at), title, about))

    def _at(self, at: int) -> int:
        """When that is in the trace; what is before its beginning, as in captures that were joined, is at it."""
        return max(0, at - (self._began or 0))


def _process(connection: int) -> str:
    return f"connection {connection}"


def _key(offered: Offered) -> tuple[int, int, int, int]:
    return offered.connection, offered.queue, offered.head, offered.at


def _queue(queue: int) -> str:
    return f"queue {queue}"
