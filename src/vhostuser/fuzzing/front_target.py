"""The front-end under fire: it is served again and again, by a back-end that is wrong each time in another way."""

from __future__ import annotations

from typing import Final

from ..conformance.frontend_peer import GRACE, Awaited, Launched
from ..errors import VhostUserError
from ..trace.event import Event
from .act import Conversation
from .back_end import Asked, HostileBackend
from .next_one import NextOne
from .target import Gone, Kind, Verdict

REST: Final = 0.1
"""Seconds of silence after which a front-end is left."""
STARTING: Final = 0.5
"""The same of one that is started for each conversation, for it has more to do."""


class FrontendTarget:
    """A front-end that connects again by itself, or is started for each conversation."""

    def __init__(self, peer: Awaited | Launched, *, timeout: float) -> None:
        self._peer, self._timeout = peer, timeout
        self._rest = STARTING if isinstance(peer, Launched) else REST
        self.asked: list[Asked] = []
        """What a right back-end was asked that wants an answer."""
        self.next = NextOne()
        first = self.have(Conversation(-1, ()))
        if first.kind:
            raise VhostUserError(f"a right back-end was too much for it already: {first.text}")

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._peer.starts - 1 if isinstance(self._peer, Launched) else 0

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """As Target."""
        sock = self.next.take() or self._peer.accept()
        with HostileBackend(sock, talk, [] if events is None else events, timeout=self._timeout, rest=self._rest) as back:
            had = back.have()
            self.asked = self.asked or back.answered
            if not back.over and self._peer.retire():
                back.leave(GRACE)  # that the back-end goes is what some die of, which says nothing about the conversation
        if death := self._peer.crashed():
            return Verdict(had, Kind.CRASH, death)
        if isinstance(self._peer, Launched):
            if self._peer.stuck:
                return Verdict(had, Kind.HANG, f"it does not end within {GRACE:g} s after SIGTERM")
        else:
            self._come_back(self._peer, Verdict(had, Kind.HANG, "it does not connect again"))
        return Verdict(had, Kind.WRONG, had.wrong) if had.wrong else Verdict(had)

    def _come_back(self, peer: Awaited, verdict: Verdict) -> None:
        try:
            self.next.put(peer.accept())
        except VhostUserError as error:
            raise Gone(f"the front-end does not come back: {error}", verdict) from None
