"""The back-end under fire: conversations are had with it one after the other, and each ends with a look at how it is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

from ..conformance.backend_bench import Offer
from ..conformance.check_backend import offer_of
from ..conformance.peer import Listening, Peer, Started
from ..errors import RemoteProtocolError, VhostUserError
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.event import Event
from ..transport.fds import close_all
from .act import Conversation
from .front_end import HONEST, Had, HostileFrontend
from .line import Line, ready
from .usage import Held, held, listener_of, seconds_of_cpu

TRIES: Final = 8
"""Connections that are made, until one is served."""
LINGERS: Final = 0.25
"""Seconds in which one that ended the connection may end itself."""
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

    @property
    def restarts(self) -> int:
        """How often it was started again."""

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """Have a conversation, and see what came of it. Gone, if it does not come back after it."""

    def held(self) -> Held | None:
        """What its process holds now; None if nobody can know."""

    def close(self) -> None:
        """Leave it."""


class Restarted(Started):
    """A command that is started again; what its processes died of is kept."""

    def __init__(self, command: str | Sequence[str], *, path: str = "") -> None:
        super().__init__(command, path=path)
        self.death, self.starts = "", 0

    def linger(self) -> None:
        """Wait a moment for the end of a process that has closed its connection."""
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LINGERS)

    def renew(self) -> None:
        """As Started. How it ends now is our doing."""
        if self._process and self._process.poll() is not None:
            self.death = self.death or self._end()
        super().renew()
        self._process = None

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _start(self) -> None:
        if self._process:
            self.death = self.death or self._end()
        self.starts += 1
        super()._start()


class BackendTarget:
    """A back-end, which is met before each conversation: it has answered GET_FEATURES on the very connection."""

    def __init__(self, peer: Listening | Restarted, *, timeout: float) -> None:
        self._peer, self._timeout = peer, timeout
        self._next: socket.socket | None = None
        self._hung = ""
        self.offer: Offer = offer_of(peer, timeout=timeout)
        self._next = self._met()
        if self._next is None:
            raise VhostUserError(f"it answers GET_FEATURES on none of its connections{self._hung and f': {self._hung}'}")
        self._death()  # one that serves once has ended since

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._peer.starts - 1 if isinstance(self._peer, Restarted) else 0

    def have(self, talk: Conversation, events: list[Event] | None = None) -> Verdict:
        """As Target."""
        sock = self._next or self._met()
        self._next = None
        if sock is None:
            raise Gone(f"the back-end does not come back: {self._hung}", Verdict(Had()))
        front = HostileFrontend(sock, talk, events)
        try:
            had = front.have()
        finally:
            front.close()
        return self._seen(had)

    def held(self) -> Held | None:
        """As Target."""
        pid = listener_of(self._next) if self._next else 0
        return held(pid) if pid else None

    def close(self) -> None:
        """As Target; the peer is somebody else's."""
        if self._next:
            self._next.close()
            self._next = None

    def _seen(self, had: Had) -> Verdict:
        """What came of it: the back-end is met again, or not."""
        try:
            self._next = self._met()
        except VhostUserError as error:
            death = self._death() or "nobody listens any more"
            raise Gone(f"the back-end does not come back: {error}", Verdict(had, Kind.CRASH, death)) from None
        if death := self._death():
            return Verdict(had, Kind.CRASH, death)
        if self._next is None:
            verdict = Verdict(had, Kind.HANG, self._hung)
            if isinstance(self._peer, Listening):
                raise Gone("the back-end hangs", verdict)
            return verdict
        return Verdict(had, Kind.WRONG, had.wrong) if had.wrong else Verdict(had)

    def _death(self) -> str:
        """What its last process died of, told once."""
        if not isinstance(self._peer, Restarted):
            return ""
        death, self._peer.death = self._peer.death, ""
        return death

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
    if isinstance(peer, Restarted):
        peer.linger()
    else:
        time.sleep(LINGERS / TRIES)
