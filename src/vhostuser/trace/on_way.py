"""Messages of a proxy's that were told and have not gone wholly: what does not go any more is told, too."""

from __future__ import annotations

from collections import deque

from .clock import now
from .event import Event, Message
from .flow import Flow
from .undelivered import remark_of, undelivered


class OnWay:
    """Messages that are on their way. `waiting` are events that nobody has seen yet: those may still be changed."""

    def __init__(self, waiting: deque[Event]) -> None:
        self._waiting = waiting
        self._held: dict[Flow, tuple[Message, int]] = {}
        """What a flow holds, and how many bytes of it are to go."""
        self._inserted: dict[Flow, list[Message]] = {}

    def holds(self, flow: Flow, message: Message, total: int) -> None:
        """`message`, of which `total` bytes are to go, is held by a flow."""
        self._held[flow] = (message, total)

    def inserted(self, flow: Flow, message: Message) -> None:
        """`message` was inserted into a flow."""
        self._inserted[flow] = self._waits(flow) + [message] * bool(flow.extra)

    def settle(self, flow: Flow) -> None:
        """What a flow holds goes no further: it has gone, or it is told that it has not."""
        message, total = self._held.pop(flow, (None, 0))
        if message is not None and flow.left:
            self._take_back(message, total - flow.left, total)

    def end(self, flow: Flow) -> None:
        """Nothing more goes."""
        self.settle(flow)
        for message, (data, _) in zip(self._waits(flow), flow.extra, strict=True):
            self._take_back(message, len(message.data) - len(data), len(message.data))
        self._inserted.pop(flow, None)

    def _waits(self, flow: Flow) -> list[Message]:
        """What was inserted and has not gone: the last ones."""
        messages = self._inserted.get(flow, [])
        return messages[max(0, len(messages) - len(flow.extra)) :]

    def _take_back(self, message: Message, went: int, total: int) -> None:
        for place in range(len(self._waiting)):  # other threads may add to it meanwhile
            if self._waiting[place] is message:
                self._waiting[place] = undelivered(message, went, total)
                return
        self._waiting.append(remark_of(message, went, total, now()))
