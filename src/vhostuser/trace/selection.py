"""A part of a capture as a capture of its own: the messages of the items that a filter matches, in their order.

Which events these are is known only once requests are answered, so a capture is read twice; a bit an event is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ..protocol.dialects import RELEASED, Dialect
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.rules import Channel
from .conversation import Conversation, Exchange, Item
from .event import Event, Remark

NEGOTIATION: Final = {
    *(Q.GET_FEATURES, Q.SET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.SET_PROTOCOL_FEATURES),
    *(Q.POSTCOPY_LISTEN, Q.POSTCOPY_END),
}
"""Requests that say how later ones are to be understood: they belong to every part."""


def selected(
    read: Callable[[], Iterable[Event]], matches: Callable[[Item], bool], dialect: Dialect = RELEASED
) -> Iterator[Event]:
    """The events of what `matches`, with those that are needed to understand them; `read` is called twice."""
    kept = _marked(read(), matches, dialect)
    for index, event in enumerate(read()):
        if index < len(kept) and kept[index]:
            yield event


def _marked(events: Iterable[Event], matches: Callable[[Item], bool], dialect: Dialect) -> bytearray:
    """For each event, whether it is of an item that is wanted."""
    conversation, kept = Conversation(dialect), bytearray()
    for index, event in enumerate(events):
        kept.append(0)
        for item in conversation.take(event):
            _mark(kept, item, index, matches)
    for item in conversation.end():
        _mark(kept, item, -1, matches)
    return kept


def _mark(kept: bytearray, item: Item, index: int, matches: Callable[[Item], bool]) -> None:
    if not matches(item) and not _needed(item):
        return
    if isinstance(item, Exchange):
        kept[item.index] = 1
        if item.reply:
            kept[item.reply.index] = 1
    else:
        kept[index] = 1


def _needed(item: Item) -> bool:
    if isinstance(item, Exchange):
        return item.message.channel is Channel.FRONTEND and item.message.request in NEGOTIATION
    return isinstance(item, Remark)
