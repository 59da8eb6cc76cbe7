"""A front-end's requests, one at a time: while the reply is awaited, the back-end's own requests are answered."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from .answering import Answering
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, ProtocolError, RemoteProtocolError, RequestFailed
from .lending import Lending, lookup_deadline
from .protocol.framing import request_frame
from .protocol.layout import Payload
from .protocol.numbers import FrontendRequest, ProtocolFeature
from .protocol.payloads import U64, Uuid
from .protocol.rules import FRONTEND, Rule
from .protocol.rules import Channel as Side
from .protocol.session import Session
from .protocol.state import Owed, reply_owed
from .shared_objects import SharedObjects
from .transport.channel import Channel
from .transport.fds import OwnedFd, close_all
from .transport.socket import NothingSent, wait
from .windows import Windows

log = logging.getLogger(__name__)
GET_OBJECT: Final = FRONTEND[FrontendRequest.GET_SHARED_OBJECT]


class Late(NamedTuple):
    """A GET_SHARED_OBJECT whose reply no lookup waits for any more; the connection is over if it has not come by `end`."""

    asked: Payload | None
    end: float


class Unwaited(DeadlineExpired):
    """The reply did not come in the time of a lookup; it may still."""


class Driving:
    """The main channel of a front-end, which is lost once, until another one begins. One thread at a time waits in it."""

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        answering: Answering,
        windows: Windows,
        *,
        table: SharedObjects | None,
        partial_timeout: float,
        reply_timeout: float,
    ) -> None:
        self._session, self._answering, self._windows = session, answering, windows
        self._timeouts = {"partial_timeout": partial_timeout, "reply_timeout": reply_timeout}
        self.lock = threading.RLock()
        """Whoever waits has it."""
        self._door = threading.RLock()  # re-entrant: a signal handler may use a front-end whose thread has it
        """Held while `lock` is taken or given back, with the two that say by whom."""
        self._depth, self._guest = 0, False
        self._awaited = ""
        """The request whose reply is waited for."""
        self._late: Late | None = None
        """What is still owed to a lookup that gave up; nothing else is asked before it has come."""
        self.lost: Exception | None = None
        """Why the connection is over, if it is."""
        self.channel = self.new_channel(sock)
        self._lending = None if table is None else self._new_lending(table)

    def new_channel(self, sock: socket.socket) -> Channel:
        """A channel with the timeouts of this one."""
        return Channel(sock, **self._timeouts)

    @property
    def lending(self) -> Lending:
        """The part in sharing objects. RemoteProtocolError if there is none, so that nobody may ask for it."""
        if self._lending is None:
            raise RemoteProtocolError("this front-end was given no table of shared objects")
        return self._lending

    def shared_object(self, uuid: UUID) -> OwnedFd | None:
        """The back-end's fd of an object, which is the caller's ("GET_SHARED_OBJECT")."""
        _, fds = self.request_with_fds(FrontendRequest.GET_SHARED_OBJECT, Uuid(uuid.bytes))
        return fds[0] if fds else None

    def _lend(self, uuid: UUID) -> OwnedFd | None:
        """The same for who waits for it, and has it before what was put off meanwhile is answered (`_do_errands`).

        It takes no longer than a lookup may; the connection lives on then, until the reply is too late for any request.
        """
        until = lookup_deadline(self.channel.reply_timeout)
        with self.turn():
            _, fds = self._request(FrontendRequest.GET_SHARED_OBJECT, Uuid(uuid.bytes), (), until=until)
            return fds[0] if fds else None

    def _new_lending(self, table: SharedObjects) -> Lending:
        try:
            return Lending(table, self._lend, self)
        except OSError:
            self.channel.close()
            raise

    def open_requests(self) -> None:
        """Give the back-end its channel, if that was negotiated ("SET_BACKEND_REQ_FD")."""
        if not self._session.state.has(ProtocolFeature.BACKEND_REQ):
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._answering.open(self.new_channel(ours))
            self.request(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def begin(self, sock: socket.socket) -> None:
        """Go on with another connection."""
        self.channel.close()
        self.channel, self.lost, self._late = self.new_channel(sock), None, None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """In the block nobody else waits: two would take each other's replies. What was mapped goes with the connection."""
        self._enter()
        try:
            yield
        finally:
            self._leave()
            if not self._depth:
                self.visit()

    @property
    def awaits_reply(self) -> bool:
        """A request was sent whose reply is not there."""
        return bool(self._awaited)

    @property
    def awaited_on(self) -> Sequence[Channel]:
        """The main channel, if a reply is awaited."""
        return (self.channel,) if self._awaited else ()

    def visit(self) -> None:
        """Do what other threads want of this front-end, unless somebody is in it, who will before it is left."""
        if not (self._lending and self._lending.errands.waiting and self._enter_as_guest()):
            return
        try:
            self._do_errands(self._lending)
        finally:
            self._leave()
            self._lending.errands.hand_over()

    def run_errands(self) -> None:
        """Do what other threads want, in the thread that is in the front-end: if a reply is awaited, once that is there."""
        if self._lending and not self._awaited:
            self._do_errands(self._lending)

    def _do_errands(self, lending: Lending) -> None:
        try:
            lending.errands.run()
        finally:
            self._answering.catch_up()

    def _enter(self) -> None:
        """Take the lock; a guest is waited for, for its visits are as short as a request."""
        with self._door:
            entered, guest = self.lock.acquire(blocking=False), self._guest
        limit = min(max(0.0, self.channel.reply_timeout), threading.TIMEOUT_MAX)
        if not entered and not (guest and self.lock.acquire(timeout=limit)):
            self.check()
            raise LocalProtocolError("another thread waits in this front-end; only close() may be called meanwhile")
        self._depth += 1

    def _enter_as_guest(self) -> bool:
        with self._door:
            entered = self.lock.acquire(blocking=False)
            if entered:
                self._guest = self._guest or not self._depth
                self._depth += 1
        return entered

    def _leave(self) -> None:
        try:
            if self.lost:
                self._forget_mappings()
        finally:
            with self._door:
                self._depth -= 1
                self._guest = self._guest and self._depth > 0
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
            try:
                return self._request(request, body, fds)
            finally:
                self._answering.catch_up()

    def _request(
        self, request: FrontendRequest, body: Payload | None, fds: Sequence[int], *, until: float | None = None
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        self._check_idle(FRONTEND[request].name)
        if self._late:
            self._await_late(self._late, self._late.end if until is None else until)
        rule, before = FRONTEND[request], self._session.state
        ask = reply_owed(rule, before, need_reply=True) is Owed.ACK
        frame = request_frame(request, body, fds, need_reply=ask)
        self._check_quiet()
        self._session.admit(Side.FRONTEND, frame)
        owed = reply_owed(rule, before, need_reply=ask)
        self._awaited, end = rule.name, time.monotonic() + self.channel.reply_timeout
        try:
            self.channel.send(frame, rule.name, owed=False)
            answer, received = self._reply(rule, owed, body, until) if owed is not Owed.NOTHING else (None, ())
        except Unwaited:
            self._late = Late(body, end)
            raise
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
            main, errands = self.channel.fileno(), [self._lending.errands.fileno()] if self._lending else []
            while True:
                ready = self._answering.serve_until((*others, main, *errands), self._sooner(deadline))
                if ready in errands:
                    self.run_errands()
                    self.check()
                elif ready == main:
                    self._unasked()
                else:
                    if ready is not None:
                        return ready
                    self._check_late()
                if deadline is not None and time.monotonic() >= deadline:
                    return self._ready_now(others, main)

    def _sooner(self, deadline: float | None) -> float | None:
        """The deadline of a wait, or the end of what is late."""
        if not self._late:
            return deadline
        return self._late.end if deadline is None else min(deadline, self._late.end)

    def _ready_now(self, others: Sequence[int], main: int) -> int | None:
        """Time is up: what is ready at this moment still counts."""
        ready = next(iter(wait((*others, main), 0)), None)
        if ready == main:
            self._unasked()
            return None
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
        if self._lending:
            self._lending.forget()

    def close(self) -> None:
        """Close the channel. Nobody else is in the front-end."""
        self.channel.close()
        if self._lending:
            self._lending.close()

    def _reply(
        self, rule: Rule, owed: Owed, asked: Payload | None, until: float | None
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        limit = self.channel.reply_timeout
        end = time.monotonic() + limit
        if until is not None and until < end:
            if not self._has_come(until):
                raise Unwaited(f"{rule.name} was not answered in the time of a lookup")
        elif not self._has_come(end):
            raise DeadlineExpired(f"{rule.name} was not answered within {limit:g} s")
        frame = self.channel.receive()
        try:
            return self._session.admit_reply(rule, frame, owed, asked), frame.fds
        except BaseException:
            close_all(frame.fds)
            raise

    def _has_come(self, deadline: float) -> bool:
        """There is something to read on the main channel, before that; requests are answered meanwhile."""
        return self._answering.serve_until((self.channel.fileno(),), deadline) is not None

    def _await_late(self, late: Late, until: float) -> None:
        """Wait for the reply that a lookup does not wait for any more, and throw it away."""
        self._awaited = GET_OBJECT.name
        try:
            if self._has_come(min(until, late.end)):
                self._take_late(late)
                return
        finally:
            self._awaited = ""
        self._check_late()
        raise Unwaited(f"the reply to an earlier {GET_OBJECT.name} is awaited")

    def _take_late(self, late: Late) -> None:
        self._late = None
        try:
            frame = self.channel.receive()
            with contextlib.ExitStack() as held:
                held.callback(close_all, frame.fds)
                self._session.admit_reply(GET_OBJECT, frame, Owed.OWN, late.asked)
        except BaseException as error:
            self.lose(error if isinstance(error, Exception) else Disconnected("interrupted in a request"))
            raise

    def _check_late(self) -> None:
        """The connection is over if that reply is late for any request."""
        if self._late and time.monotonic() >= self._late.end:
            error = DeadlineExpired(f"{GET_OBJECT.name} was not answered within {self.channel.reply_timeout:g} s")
            self.lose(error)
            raise error

    def _check_quiet(self) -> None:
        """Nothing has come that a request would take for its reply: Disconnected or RemoteProtocolError else.

        An answer that comes between this and its request can't be told from one that comes behind it.
        """
        if wait((self.channel,), 0):
            self._unasked()

    def _unasked(self) -> None:
        """Something came on the main channel that nobody waits for: what is late; else its end, or a wrong message."""
        if self.channel.fileno() >= 0 and not wait((self.channel,), 0):
            return  # a signal's handler has asked for something meanwhile, and so has taken what was late
        if self._late:
            self._take_late(self._late)
            return
        try:
            frame = self.channel.receive()
            close_all(frame.fds)
            text = f"a message came that nobody asked for: request {frame.request}, flags {frame.flags:#x}"
            raise RemoteProtocolError(text, request=str(frame.request), fatal=True)
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self.lose(error)
            raise
