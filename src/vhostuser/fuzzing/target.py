"""The back-end under fire: conversations are had with it one after the other, and each ends with a look at how it is."""

from __future__ import annotations

import socket
import time
from enum import Enum
from typing import Final, NamedTuple, Protocol

from ..conformance.backend_bench import Offer
from ..conformance.check_backend import offer_of
from ..conformance.peer import LINGERS, Listening, Peer, Started
from ..errors import RemoteProtocolError, VhostUserError
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.event import Event
from ..transport.fds import close_all
from .act import Conversation
from .front_end import HONEST, Had, HostileFrontend
from .line import Line, ready
from .next_one import NextOne
from .usage import listener_of, seconds_of_cpu

TRIES: Final = 8
"""Connections that are made, until one is served."""
SPINS: Final = 0.1
"""The share of its time that one has to compute to be called busy: one that waits for something computes nothing."""


class Kind(Enum):
    """What can be found."""

    CRASH = "crash"
    HANG = "hang"
    LEAK = "leak"
    WRONG = "wrong reply"


class Verdict(NamedTuple):
    """What came of a conversation; `kind` is None if that is in order."""

    had: Had
    kind: Kind | None = None
    text: str = ""


class Gone(VhostUserError):
    """The peer is not there any more, and nobody can start it again. `verdict` says what was seen of its end."""

    def __init__(self, text: str, verdict: Verdict) -> None:
        super().__init__(text)
        self.verdict = verdict


class Target(Protocol):
    """A peer to have conversations with."""

    next: NextOne
    """The connection of the next conversation: what there is to be left, and to look at the peer by."""

    @property
    def restarts(self) -> int:
        """How often it was started again."""

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """Have a conversation, and see what came of it. Gone, if it does not come back after it."""


class BackendTarget:
    """A back-end, which is met before each conversation: it has answered GET_FEATURES on the very connection."""

    def __init__(self, peer: Listening | Started, *, timeout: float) -> None:
        self._peer, self._timeout = peer, timeout
        self._hung = ""
        self.offer: Offer = offer_of(peer, timeout=timeout)
        self.next = NextOne()
        self.next.put(self._met())
        if not self.next.is_there:
            raise VhostUserError(f"it answers GET_FEATURES on none of its connections{self._hung and f': {self._hung}'}")
        self._death()  # one that serves once has ended since

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._peer.starts - 1 if isinstance(self._peer, Started) else 0

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """As Target."""
        sock = self.next.take() or self._met()
        if sock is None:
            raise Gone(f"the back-end does not come back: {self._hung}", Verdict(Had()))
        front = HostileFrontend(sock, talk, events)
        try:
            had = front.have()
        finally:
            front.close()
        return self._seen(had)

    def _seen(self, had: Had) -> Verdict:
        """What came of it: the back-end is met again, or not."""
        try:
            self.next.put(self._met())
        except VhostUserError as error:
            death = self._death() or "nobody listens any more"
            raise Gone(f"the back-end does not come back: {error}", Verdict(had, Kind.CRASH, death)) from None
        if death := self._death():
            return Verdict(had, Kind.CRASH, death)
        if not self.next.is_there:
            verdict = Verdict(had, Kind.HANG, self._hung)
            if isinstance(self._peer, Listening):
                raise Gone("the back-end hangs", verdict)
            return verdict
        return Verdict(had, Kind.WRONG, had.wrong) if had.wrong else Verdict(had)

    def _death(self) -> str:
        """What its last process died of, told once."""
        return self._peer.take_death() if isinstance(self._peer, Started) else ""

    def _met(self) -> socket.socket | None:
        """A connection that is served; None if the back-end hangs, which is over then if it can be started again."""
        self._hung = "it ends every connection at once"
        for _ in range(TRIES):
            sock = self._peer.connect()
            line = Line(sock, Channel.FRONTEND, Role.FRONTEND)
            pid, before = listener_of(sock), time.monotonic()
            computed = seconds_of_cpu(pid)
            if self._answers(line):
                return sock
            line.close()
            if not line.over:
                self._hung = self._told(pid, time.monotonic() - before, seconds_of_cpu(pid) - computed)
                break
            _linger(self._peer)
        self._peer.renew()
        return None

    def _answers(self, line: Line) -> bool:
        """The back-end answers GET_FEATURES on this connection."""
        line.say(HONEST)
        end = time.monotonic() + self._timeout
        while not line.over and time.monotonic() < end:
            if not ready([line], end - time.monotonic()):
                return False
            try:
                frames = line.receive()
            except RemoteProtocolError:
                return True  # it lives, and what it says is for the next conversation to find
            close_all(fd for frame in frames for fd in frame.fds)
            if frames:
                return True
        return False

    def _told(self, pid: int, seconds: float, computed: float) -> str:
        busy = ", and computes meanwhile" if pid and computed > SPINS * seconds else ""
        return f"a new connection gets no answer to GET_FEATURES within {self._timeout:g} s{busy}"


def _linger(peer: Peer) -> None:
    if isinstance(peer, Started):
        peer.linger()
    else:
        time.sleep(LINGERS / TRIES)
