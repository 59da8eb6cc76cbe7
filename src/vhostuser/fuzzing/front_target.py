"""The front-end under fire: it is served again and again, by a back-end that is wrong each time in another way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Final

from ..conformance.frontend_peer import GRACE, Awaited, Launched
from ..errors import VhostUserError
from ..trace.event import Event
from .act import Conversation
from .back_end import Asked, HostileBackend
from .target import Gone, Kind, Verdict
from .usage import Held, held, listener_of

REST: Final = 0.1
"""Seconds of silence after which a front-end is left."""
STARTING: Final = 0.5
"""The same of one that is started for each conversation, for it has more to do."""


class Relaunched(Launched):
    """A command that is started for each conversation; `stuck` says that the last one had to be killed."""

    stuck = False
    starts = 0

    def accept(self) -> socket.socket:
        """As Launched."""
        self.starts += 1
        return super().accept()

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _finish(self) -> int | None:
        code = super()._finish()
        self.stuck = code == -signal.SIGKILL
        return code


class FrontendTarget:
    """A front-end that connects again by itself, or is started for each conversation."""

    def __init__(self, peer: Awaited | Relaunched, *, timeout: float) -> None:
        self._peer, self._timeout = peer, timeout
        self._rest = STARTING if isinstance(peer, Relaunched) else REST
        self.asked: list[Asked] = []
        """What a right back-end was asked that wants an answer."""
        self._next: socket.socket | None = None
        first = self.have(Conversation(-1, ()))
        if first.kind:
            raise VhostUserError(f"a right back-end was too much for it already: {first.text}")

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._peer.starts - 1 if isinstance(self._peer, Relaunched) else 0

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """As Target."""
        sock, self._next = self._next or self._peer.accept(), None
        with HostileBackend(sock, talk, [] if events is None else events, timeout=self._timeout, rest=self._rest) as back:
            had = back.have()
            self.asked = self.asked or back.answered
            if not back.over and self._peer.retire():
                back.leave(GRACE)  # that the back-end goes is what some die of, which says nothing about the conversation
        if death := self._peer.crashed():
            return Verdict(had, Kind.CRASH, death)
        if isinstance(self._peer, Relaunched):
            if self._peer.stuck:
                return Verdict(had, Kind.HANG, f"it does not end within {GRACE:g} s after SIGTERM")
        else:
            self._come_back(self._peer, Verdict(had, Kind.HANG, "it does not connect again"))
        return Verdict(had, Kind.WRONG, had.wrong) if had.wrong else Verdict(had)

    def held(self) -> Held | None:
        """As Target: of one that connects again by itself."""
        pid = listener_of(self._next) if self._next else 0
        return held(pid) if pid else None

    def close(self) -> None:
        """As Target; the peer is somebody else's."""
        if self._next:
            self._next.close()
            self._next = None

    def _come_back(self, peer: Awaited, verdict: Verdict) -> None:
        try:
            self._next = peer.accept()
        except VhostUserError as error:
            raise Gone(f"the front-end does not come back: {error}", verdict) from None
