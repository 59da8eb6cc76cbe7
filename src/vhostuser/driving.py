"""A front-end's requests, one at a time: while the reply is awaited, the back-end's own requests are answered."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from .answering import Answering
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, ProtocolError, RemoteProtocolError, RequestFailed
from .protocol.framing import request_frame
from .protocol.layout import Payload
from .protocol.numbers import FrontendRequest
from .protocol.payloads import U64
from .protocol.rules import FRONTEND, Rule
from .protocol.rules import Channel as Side
from .protocol.session import Session
from .protocol.state import Owed, reply_owed
from .transport.channel import Channel
from .transport.fds import OwnedFd, close_all
from .transport.socket import NothingSent, wait
from .windows import Windows

log = logging.getLogger(__name__)


class Driving:
    """The main channel of a front-end, which is lost once, until another one begins. One thread at a time waits in it."""

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        answering: Answering,
        windows: Windows,
        *,
        partial_timeout: float,
        reply_timeout: float,
    ) -> None:
        self._session, self._answering, self._windows = session, answering, windows
        self._timeouts = {"partial_timeout": partial_timeout, "reply_timeout": reply_timeout}
        self.lock = threading.RLock()
        """Whoever waits has it."""
        self._awaited = ""
        """The request whose reply is waited for."""
        self.lost: Exception | None = None
        """Why the connection is over, if it is."""
        self.channel = self.new_channel(sock)

    def new_channel(self, sock: socket.socket) -> Channel:
        """A channel with the timeouts of this one."""
        return Channel(sock, **self._timeouts)

    def begin(self, sock: socket.socket) -> None:
        """Go on with another connection."""
        self.channel.close()
        self.channel, self.lost = self.new_channel(sock), None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """In the block nobody else waits: two would take each other's replies. What was mapped goes with the connection."""
        if not self.lock.acquire(blocking=False):
            self.check()
            raise LocalProtocolError("another thread waits in this front-end; only close() may be called meanwhile")
        try:
            yield
        finally:
            try:
                if self.lost:
                    self._forget_mappings()
            finally:
                self.lock.release()

    def _forget_mappings(self) -> None:
        """Take away what was mapped. What the kernel leaves there the next turn takes, at the latest before a reconnect."""
        try:
            self._windows.reset()
        except OSError as error:
            log.warning("mappings of a connection that is over are left for now: %s", error)

    def request(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()) -> Payload | None:
        """Send a request and return the reply's payload, None for an acknowledgement. Errors as in `request_with_fds`."""
        answer, received = self.request_with_fds(request, body, fds)
        close_all(received)
        return answer

    def request_with_fds(
        self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        """Send a request and return the reply's payload and fds, which are the caller's; None for an acknowledgement.

        LocalProtocolError if it is not allowed now, NothingSent, an OSError, if the kernel does not take it: all is as it
        was then. RequestFailed if the back-end says no.
        """
        with self.turn():
            return self._request(request, body, fds)

    def _request(
        self, request: FrontendRequest, body: Payload | None, fds: Sequence[int]
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        self._check_idle(FRONTEND[request].name)
        rule, before = FRONTEND[request], self._session.state
        ask = reply_owed(rule, before, need_reply=True) is Owed.ACK
        frame = request_frame(request, body, fds, need_reply=ask)
        self._check_quiet()
        self._session.admit(Side.FRONTEND, frame)
        owed = reply_owed(rule, before, need_reply=ask)
        self._awaited = rule.name
        try:
            self.channel.send(frame, rule.name, owed=False)
            answer, received = self._reply(rule, owed, body) if owed is not Owed.NOTHING else (None, ())
        except NothingSent:
            self._session.state = before
            raise
        except BaseException as error:  # whatever it is: the reply would be taken for that to another request
            self._session.state = before
            self.lose(error if isinstance(error, Exception) else Disconnected("interrupted in a request"))
            raise
        finally:
            self._awaited = ""
        if owed is Owed.OWN:
            return answer, received
        if isinstance(answer, U64) and answer.value:
            self._session.state = before
            raise RequestFailed(rule.name, answer.value)
        return None, ()

    def wait(self, others: Sequence[int], deadline: float | None) -> int | None:
        """Answer requests until one of `others` is readable, and return it; None once the deadline has passed."""
        with self.turn():
            self._check_idle("a wait")
            main = self.channel.fileno()
            ready = self._answering.serve_until((*others, main), deadline)
            if ready == main:
                self._unasked()
            return ready

    def check(self) -> None:
        """Raise Disconnected if the connection is over."""
        if self.lost:
            raise Disconnected(f"the connection is over: {self.lost}")

    def _check_idle(self, what: str) -> None:
        """The connection lives, and no reply is due that `what` would take: a handler may neither ask nor wait meanwhile."""
        self.check()
        if self._awaited:
            text = f"{what} is not possible in a handler while the reply to {self._awaited} is awaited"
            raise LocalProtocolError(text, request=what, field="request", value=self._awaited)

    def lose(self, error: Exception) -> None:
        """The connection is over, because of `error`."""
        self.lost = self.lost or error

    def _reply(self, rule: Rule, owed: Owed, asked: Payload | None) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        limit = self.channel.reply_timeout
        if self._answering.serve_until((self.channel.fileno(),), time.monotonic() + limit) is None:
            raise DeadlineExpired(f"{rule.name} was not answered within {limit:g} s")
        frame = self.channel.receive()
        try:
            return self._session.admit_reply(rule, frame, owed, asked), frame.fds
        except BaseException:
            close_all(frame.fds)
            raise

    def _check_quiet(self) -> None:
        """Nothing has come that a request would take for its reply: Disconnected or RemoteProtocolError else.

        An answer that comes between this and its request can't be told from one that comes behind it.
        """
        if wait((self.channel,), 0):
            self._unasked()

    def _unasked(self) -> None:
        """Something came on the main channel that nobody asked for: its end, or a wrong message."""
        try:
            frame = self.channel.receive()
            close_all(frame.fds)
            text = f"a message came that nobody asked for: request {frame.request}, flags {frame.flags:#x}"
            raise RemoteProtocolError(text, request=str(frame.request), fatal=True)
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self.lose(error)
            raise
