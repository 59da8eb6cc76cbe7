"""What never reached the peer: how the note of such a message says so, or a remark where the message was told before."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..protocol.rules import RULES
from .event import Message, Remark, Remarkable

NOT_DELIVERED: Final = "not delivered"


def undelivered(message: Message, went: int = 0, total: int = 0) -> Message:
    """The message with a note that it did not go, or only `went` bytes of `total`."""
    note = f"{NOT_DELIVERED}: {went} of {total} bytes went" if went else NOT_DELIVERED
    return replace(message, note=", ".join(filter(None, (message.note, note))))


def remark_of(message: Message, went: int, total: int, at: int) -> Remark:
    """The same of a message that was told without it."""
    return Remark(at, message.connection, Remarkable.LOST, f"{_subject(message)}: {went} of {total} bytes went")


def means(remark: Remark, message: Message) -> bool:
    """The remark may be about this message: it is about the last one of which that is true."""
    return (
        remark.about is Remarkable.LOST
        and remark.connection == message.connection
        and remark.text.startswith(f"{_subject(message)}: ")
    )


def _subject(message: Message) -> str:
    """`not delivered: SET_VRING_NUM from the front-end on the front-end channel`."""
    rule = RULES[message.channel].get(message.request)
    name = f"request {message.request}" if rule is None else rule.name
    what = "bytes" if not message.whole else name if message.asks else f"{name} reply"
    return f"{NOT_DELIVERED}: {what} from the {message.sender.value} on the {message.channel.value} channel"
