"""One side's part in a recorded conversation: what it is to send, what it is to wait for, and in which order.

Within a channel and a direction the order is the recorded one. A request of ours is sent when all is done that came before
it; an answer when what it answers came. So a peer may be quicker on one channel and slower on the other than it was then,
and nobody waits for what comes later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from .conversation import Conversation, Exchange
from .decoded import Decoded, decoded
from .event import Event, Message, Remark
from .undelivered import means

AHEAD: Final = 128
"""Messages of the capture that are looked at ahead of those that are due."""


@dataclass(slots=True, eq=False)
class Step:
    """A message of the capture: to be sent if it is `ours`, else to be waited for."""

    what: Decoded
    ours: bool
    gap: int
    """Nanoseconds between it and the message before it."""
    done: bool = False

    @property
    def message(self) -> Message:
        """The message as it was recorded."""
        return self.what.message

    @property
    def channel(self) -> Channel:
        """Where it goes."""
        return self.what.message.channel


class Script:
    """The steps of `role` in one connection of a capture, read as they are needed."""

    def __init__(self, events: Iterable[Event], role: Role, connection: int | None = None) -> None:
        self._steps = self._read(events, role, connection)
        self._window: deque[Step] = deque()
        self._early = 0
        """Those in the window that are done."""
        self.begun = 0
        """Messages that were done."""
        self.end = 0
        """Behind the last event that was read."""

    @property
    def over(self) -> bool:
        """Everything is done."""
        self._fill()
        return not self._window

    def to_send(self) -> Step | None:
        """The next message that may be sent now; None if others must come first.

        It is the first one that is not done, or an answer to what came early.
        """
        first = self.due()
        if first is None or first.ours or not self._early:
            return first if first and first.ours else None
        waiting: set[tuple[Channel, bool]] = set()
        for step in self._undone():
            if step.ours and self._may_go(step, waiting):
                return step
            waiting.add((step.channel, step.ours))
        return None

    def expected(self, channel: Channel) -> Step | None:
        """The message that is to come next on a channel."""
        return next((step for step in self._undone() if not step.ours and step.channel is channel), None)

    def due(self) -> Step | None:
        """The first message that is not done."""
        return next(self._undone(), None)

    @property
    def awaits_answer(self) -> bool:
        """When what is due was recorded, the front-end waited for an answer on the main channel."""
        behind = dropwhile(lambda step: step.done, self._window)
        following = next((step for step in behind if step.channel is Channel.FRONTEND), None)
        return following is not None and not following.message.asks

    def did(self, step: Step) -> None:
        """A step is done."""
        step.done = True
        self.begun, self._early = self.begun + 1, self._early + 1
        while self._window and self._window[0].done:
            self._window.popleft()
            self._early -= 1

    def _may_go(self, step: Step, waiting: set[tuple[Channel, bool]]) -> bool:
        if step.message.asks:
            return not waiting
        return (step.channel, True) not in waiting and (step.channel, False) not in waiting

    def _undone(self) -> Iterator[Step]:
        self._fill()
        return (step for step in self._window if not step.done)

    def _fill(self) -> None:
        while len(self._window) < AHEAD and (step := next(self._steps, None)):
            self._window.append(step)

    def _withdraw(self, remark: Remark) -> None:
        """Leave out the message of which a remark says that it was not delivered, unless its turn has come already."""
        step = next((each for each in reversed(self._window) if means(remark, each.message)), None)
        if step is not None and not step.done:
            self._window.remove(step)

    def _read(self, events: Iterable[Event], role: Role, connection: int | None) -> Iterator[Step]:
        """The messages of a connection, the first one of the capture if none is named; not what was dropped on its way."""
        conversation, before = Conversation(), None
        for index, event in enumerate(events):
            items, self.end = conversation.take(event), index + 1
            if isinstance(event, Remark):
                self._withdraw(event)
            if not isinstance(event, Message) or not event.delivered:
                continue
            connection = event.connection if connection is None else connection
            ours = event.sender is role
            if event.connection != connection or not (ours or event.whole):
                continue
            replies = (item.reply or item.request for item in items if isinstance(item, Exchange))
            features = conversation.state(connection).protocol_acknowledged
            what = next((each for each in replies if each.index == index), None) or decoded(event, index, features=features)
            yield Step(what, ours, 0 if before is None else max(0, event.at - before))
            before = event.at
