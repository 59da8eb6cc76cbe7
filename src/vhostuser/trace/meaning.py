"""What a message says by itself, with nothing known of the conversation: its size tells what was negotiated."""

from __future__ import annotations

from collections.abc import Iterator

from ..protocol.rules import Reply, Rule
from ..protocol.state import Owed
from .decoded import Decoded, decoded
from .event import Message

TWO_ANSWERS = (Reply.OWN_IN_POSTCOPY, Reply.OWN_WITH_LOG_SHMFD)


def understood(message: Message, index: int) -> Decoded:
    """`message` decoded by the first layout of its request that fits; by the usual one, with the fault, if none does."""
    usual = decoded(message, index, owed=Owed.OWN, postcopy=True)
    if not usual.fault or usual.rule is None:
        return usual
    return next((each for each in _other_layouts(message, index, usual.rule) if not each.fault), usual)


def _other_layouts(message: Message, index: int, rule: Rule) -> Iterator[Decoded]:
    """What else it may be: a request under a protocol feature, or an acknowledgement where the answer may be another."""
    if message.asks:
        yield from (decoded(message, index, features=1 << feature) for feature, _ in rule.variants)
    elif rule.reply in TWO_ANSWERS:
        yield decoded(message, index, owed=Owed.ACK)
