"""What a peer's process holds more and more of, the longer it is talked to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ..trace.event import Event
from .act import Conversation
from .finding import Finding
from .front_end import HONEST
from .shrink import shrunk
from .target import Kind, Target
from .usage import Held, settled

EVERY: Final = 50
"""Conversations from one look to the next."""
MOST: Final = 20
"""Fds, or mappings, that a process may hold more after so many."""
TIMES: Final = 12
"""How often a conversation is had to see whether it is the one."""
SHARE: Final = 2
"""It is, if every one of them, but for so many, has left something."""


class Leaks:
    """Looks at the process now and then; if it has grown, finds a conversation that makes it grow each time it is had."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._before: Held | None = None
        self._since: deque[Conversation] = deque(maxlen=EVERY)

    def look(self, talk: Conversation, may_go_on: Callable[[], bool]) -> Finding | None:
        """After a conversation that left the peer alive: what leaks, if it is time to look and something does."""
        self._since.append(talk)
        if len(self._since) < EVERY:
            return None
        talks = [Conversation(talk.number, (HONEST,)), *self._since]  # it may be every connection that does it
        self._since.clear()
        before, now = self._before, self._settled(self._before, MOST)
        self._before = now
        if not before or not now or now.pid != before.pid or not now.more_than(before, MOST):
            return None
        found = next((each for each in talks if may_go_on() and self._grows(each)), None)
        if found is None:
            return None
        short = shrunk(found, lambda shorter: bool(self._grows(shorter)), may_go_on)
        text = f"{self._grows(short) or now.more_than(before, MOST)} after {TIMES} such conversations"
        events: list[Event] = []
        self._target.have(short, events)
        self._before = None
        return Finding(Kind.LEAK, text, short, short.acts[-1].name, events)

    def _grows(self, talk: Conversation) -> str:
        """What more the process holds after a conversation was had some times; empty if it does not."""
        before = self._settled(None, 0)
        for _ in range(TIMES):
            if self._target.have(talk).kind:
                return ""
        now = self._settled(before, TIMES - SHARE - 1)
        return now.more_than(before, TIMES - SHARE - 1) if before and now and now.pid == before.pid else ""

    def _settled(self, before: Held | None, most: int) -> Held | None:
        return settled(self._target.next.held, before, most)
