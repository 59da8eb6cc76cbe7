"""What `vhu check` says in a rule, in words: the messages of its own side, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from ..protocol.numbers import HEADER_SIZE, NEED_REPLY, REPLY, VERSION
from ..protocol.payloads import U64
from ..protocol.rules import RULES, Channel, Reply
from ..protocol.state import Role
from ..trace.event import Event, Message

USUAL: Final = "answers as they should be"
_VERSION_BITS: Final = 0x3


def sent_to(checked: Role, events: Sequence[Event]) -> list[str]:
    """The messages that were sent to the side `checked`; the same one after the other once, and how often."""
    runs = [(word, len(list(run))) for word, run in groupby(_words(checked, events))]
    words = [word if count == 1 or word == USUAL else f"{word}, {count} times" for word, count in runs]
    return words if words != [] else ["nothing"]


def _words(checked: Role, events: Sequence[Event]) -> Iterator[str]:
    asked: dict[Channel, int] = {}
    for event in events:
        if not isinstance(event, Message):
            continue
        if event.sender is checked:
            asked[event.channel] = event.request
        elif _is_usual(event, asked.get(event.channel)):
            yield USUAL
        else:
            yield _word(event)


def _is_usual(message: Message, asked: int | None) -> bool:
    """It is the reply to what was asked last, and nothing is special about it."""
    right = message.whole and message.flags == VERSION | REPLY and message.request == asked
    return right and not message.fds and not _is_odd(message)


def _word(message: Message) -> str:
    if len(message.data) < HEADER_SIZE:
        return f"{len(message.data)} bytes of a header"
    rule = RULES[message.channel].get(message.request)
    name = rule.name if rule else f"request {message.request}"
    aside = ", ".join(_asides(message))
    return f"{name} ({aside})" if aside else name


def _asides(message: Message) -> Iterator[str]:
    """What is special about it."""
    reply, need = message.flags & REPLY, message.flags & NEED_REPLY
    if not message.whole:
        yield "in part"
    if reply:
        yield "reply"
    elif need:
        yield "need_reply"
    if message.flags & ~(REPLY | _VERSION_BITS | (0 if reply else NEED_REPLY)) or message.flags & _VERSION_BITS != VERSION:
        yield f"flags {message.flags:#x}"
    if message.whole and _is_odd(message):
        yield f"{len(message.payload)} bytes"
    if message.fds:
        yield "1 fd" if len(message.fds) == 1 else f"{len(message.fds)} fds"


def _is_odd(message: Message) -> bool:
    """Its payload is not of a size that the request, its reply or an acknowledgement has."""
    rule = RULES[message.channel].get(message.request)
    if rule is None:
        return False
    if message.flags & REPLY and rule.reply is not Reply.OWN:
        return len(message.payload) != U64.STRUCT.size
    payload = rule.answer_of(len(message.payload)) if message.flags & REPLY else rule.payload
    return len(message.payload) not in (payload.SIZES if payload else (0,))
