"""The conversation as it was before each message that is asked about, with the answers that were given in a peer's stead."""

from __future__ import annotations

from dataclasses import replace

from ..protocol.state import Role
from .conversation import Conversation, Exchange
from .decoded import Decoded, decoded
from .event import Message
from .verdict import Verdict

_OTHER = {Role.FRONTEND: Role.BACKEND, Role.BACKEND: Role.FRONTEND}


class Followed:
    """Follows one connection; a message of another one shows that it is over."""

    def __init__(self) -> None:
        self._conversation, self._connection = Conversation(), 0

    def take(self, message: Message) -> tuple[Decoded, Exchange]:
        """What a message says, and the exchange that it belongs to."""
        if message.connection != self._connection:
            self._conversation, self._connection = Conversation(), message.connection
        features = self._conversation.state(message.connection).protocol_acknowledged
        settled = [item for item in self._conversation.take(message) if isinstance(item, Exchange)]
        if message.asks or not settled:
            understood = decoded(message, 0, features=features)
            return understood, Exchange(understood)
        return settled[-1].reply or settled[-1].request, settled[-1]

    def answered(self, message: Message, verdict: Verdict | None) -> Verdict | None:
        """Hear what becomes of the message that was taken last; the verdict."""
        if verdict is not None and verdict.answer:
            self._conversation.take(replace(message, sender=_OTHER[message.sender], data=verdict.answer, fds=()))
        return verdict
