"""Conversations by the hundred with one peer, and what they bring to light."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import VhostUserError
from ..trace.event import Event
from .act import Conversation
from .finding import Finding
from .leaks import Leaks
from .shrink import shrunk
from .target import Gone, Kind, Target, Verdict

HONEST: Final = "as it should be"
SHRINKS: Final = 30.0
"""Seconds that it may take to make a finding shorter."""
OVERTIME: Final = 10.0
"""Seconds of that which may lie behind the end."""
AGAIN: Final = 2
"""How often a conversation is had again, to see whether the same comes of it."""
BEFORE: Final = 2
"""Conversations before the last one that may have done it: a peer need not die at once."""


class Campaign:
    """Has the conversations that `make` makes of their numbers, for so many seconds, and at most `most` of them."""

    def __init__(
        self, target: Target, make: Callable[[int], Conversation], *, seconds: float, most: int | None = None
    ) -> None:
        self._target, self._make, self._most = target, make, most
        self.began = time.monotonic()
        self._end = self.began + seconds
        self.conversations = self.messages = 0
        self.covered: Counter[tuple[str, str]] = Counter()
        """Messages by request and mutation."""
        self.findings: list[Finding] = []
        self._known: dict[tuple[Kind, str], Finding] = {}
        self._lately: deque[Conversation] = deque(maxlen=BEFORE + 1)
        self._leaks = Leaks(target)

    def run(self) -> Iterator[Finding]:
        """Go on until the time is over; each new finding, as it is found. Gone if the peer does not come back."""
        while time.monotonic() < self._end and self.conversations != self._most:
            talk = self._make(self.conversations)
            self._lately.append(talk)
            self.conversations += 1
            events: list[Event] = []
            try:
                verdict = self._target.have(talk, events)
            except Gone as gone:
                yield from self._lost(talk, gone.verdict, events)
                raise
            self._count(talk, verdict)
            if verdict.kind:
                yield from self._found(Finding(verdict.kind, verdict.text, talk, verdict.had.last, events, again=False))
            elif found := self._leaks.look(talk, self._may_go_on()):
                yield from self._kept(found)

    @property
    def seconds(self) -> float:
        """How long it has gone on."""
        return time.monotonic() - self.began

    def _count(self, talk: Conversation, verdict: Verdict) -> None:
        self.messages += verdict.had.sent
        self.covered.update((act.name, act.changed or HONEST) for act in talk.acts)

    def _lost(self, talk: Conversation, verdict: Verdict, events: list[Event]) -> Iterator[Finding]:
        """The peer does not come back: what was seen of it is all there is."""
        if verdict.kind:
            self._count(talk, verdict)
            yield from self._kept(Finding(verdict.kind, verdict.text, talk, verdict.had.last, events, again=False))

    def _found(self, raw: Finding) -> Iterator[Finding]:
        """Something new is made shorter, and kept."""
        if known := self._known.get(raw.key):
            known.count += 1
            return
        try:
            finding = self._shortest(raw)
        except VhostUserError:
            yield from self._kept(raw)
            raise
        yield from self._kept(finding)
        self._known[raw.key] = self._known[finding.key]

    def _kept(self, finding: Finding) -> Iterator[Finding]:
        if known := self._known.get(finding.key):
            known.count += 1
            return
        self._known[finding.key] = finding
        self.findings.append(finding)
        yield finding

    def _shortest(self, raw: Finding) -> Finding:
        """The same by the shortest conversation; as it was seen, if it is not seen again."""
        may_go_on = self._may_go_on()

        def fails(shorter: Conversation) -> bool:
            return self._target.have(shorter).kind is raw.kind

        culprit = next((each for each in reversed(self._lately) for _ in range(AGAIN) if fails(each)), None)
        self._lately.clear()
        if culprit is None:
            return raw
        short = shrunk(culprit, fails, may_go_on)
        events, again = self._events(short, raw.kind)
        text = again.text if again.kind is raw.kind else raw.text
        return Finding(raw.kind, text, short, short.acts[-1].name, events)

    def _events(self, talk: Conversation, kind: Kind) -> tuple[list[Event], Verdict]:
        """What is said in a conversation, written down."""
        for _ in range(AGAIN + 1):
            events: list[Event] = []
            verdict = self._target.have(talk, events)
            if verdict.kind is kind:
                break
        return events, verdict

    def _may_go_on(self) -> Callable[[], bool]:
        """Whether a finding may still be made shorter."""
        now = time.monotonic()
        end = min(now + SHRINKS, max(now, self._end) + OVERTIME)
        return lambda: time.monotonic() < end
