"""When an answer that is given in a peer's stead may go: replies come in order, so it waits for those owed before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ..protocol.rules import Channel
from .conversation import Conversation, Exchange
from .event import Message


@dataclass(slots=True)
class _Held:
    data: bytes
    behind: int
    """Replies that are owed before it."""


class Turns:
    """Follows one connection."""

    def __init__(self) -> None:
        self._conversation = Conversation()
        self._held: dict[Channel, deque[_Held]] = {channel: deque() for channel in Channel}

    def asked(self, message: Message, answer: bytes, *, goes: bool) -> None:
        """A request passes, or is kept back; `answer`, if there is one, is what it gets in the peer's stead."""
        behind = self._conversation.owed(message.connection, message.channel)
        if goes:
            self._conversation.take(message)
        if answer:
            self._held[message.channel].append(_Held(answer, behind))

    def replied(self, message: Message) -> None:
        """A reply of the peer's passes."""
        items = [item for item in self._conversation.take(message) if isinstance(item, Exchange)]
        for held in self._held[message.channel]:
            held.behind -= sum(not item.orphan for item in items)

    def due(self, channel: Channel) -> Iterator[bytes]:
        """The answers whose turn it is."""
        held = self._held[channel]
        while held and held[0].behind <= 0:
            yield held.popleft().data
