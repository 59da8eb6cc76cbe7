"""The back-end's own requests: one at a time over the back-end channel, each waited for until it is answered."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import Final

from .errors import DeadlineExpired, Disconnected, LocalProtocolError, RemoteProtocolError, VhostUserError
from .exports import Exports
from .plain.choice import new_line
from .protocol.framing import Frame, request_frame
from .protocol.layout import Payload
from .protocol.numbers import BackendRequest, ProtocolFeature
from .protocol.payloads import U64
from .protocol.peers import Peer, recognise
from .protocol.rules import BACKEND
from .protocol.rules import Channel as Side
from .protocol.session import Session, check_gate
from .protocol.state import Owed, reply_owed
from .transport.channel import Channel
from .transport.fds import OwnedFd, close_all
from .transport.socket import NothingSent, wait

NO_CHANNEL: Final = "the front-end has given no back-end channel (SET_BACKEND_REQ_FD)"
AT_ONCE: Final = 64
"""Requests under way together: their acknowledgements, unread, must fit into the socket."""
Request = tuple[BackendRequest, Payload | None, Sequence[int]]


class Port:
    """Where a device's requests to the front-end leave.

    The thread that serves the front-end opens, renews and closes it; any thread may send, with `lock` held.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.line = new_line(self.lock)
        """The same for requests that are plain."""
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._running = False
        self._lost = "no front-end is connected"
        self.opened = 0
        """How many channels this front-end has given."""
        self._settled = threading.Event()
        self.exports = Exports()

    @property
    def running(self) -> bool:
        """A driver runs the device, so that shared memory may be mapped."""
        return self._running

    @property
    def peer(self) -> Peer | None:
        """The front-end, if it is known by name."""
        session = self._session
        return recognise(session.state) if session else None

    def update(self) -> None:
        """The session has moved."""
        state = self._session.state if self._session else None
        self._running = state is not None and state.running
        agreed = state is not None and state.has(ProtocolFeature.SHMEM) and state.has(ProtocolFeature.REPLY_ACK)
        self.line.running = self._running and agreed

    def connect(self, session: Session) -> None:
        """A front-end is there; it has not given its channel yet."""
        self._session, self._lost, self.opened = session, NO_CHANNEL, 0
        self.update()

    def open(self, channel: Channel) -> None:
        """Use `channel`; one that was there before is closed."""
        self._settled.clear()
        self.opened += 1
        self.shutdown()
        with self.lock:
            self._drop(NO_CHANNEL)
            self._channel = channel
            self.line.use(channel.socket, channel.reply_timeout)
        self._settled.set()

    def reopened(self, opened: int) -> bool:
        """Whether there is another channel since there were so many; waits until it may be used. The lock must be free."""
        return self.opened != opened and self._settled.wait()

    def shutdown(self) -> None:
        """End the wait of whoever sends at the moment."""
        if channel := self._channel:
            channel.shutdown()

    def close(self) -> None:
        """The front-end is gone."""
        self.shutdown()
        with self.lock:
            self._drop("the front-end is gone")
            self._session = None
            self.update()

    def send_all(self, requests: Sequence[Request]) -> list[int]:
        """Send requests, then take their answers in the same order: a status each, 0 for yes.

        A request without an answer (REPLY_ACK was not negotiated) counts as 0. Raises LocalProtocolError or OSError
        before anything is sent; Disconnected, DeadlineExpired or RemoteProtocolError when the channel is lost.
        """
        channel, session = self._channel, self._session
        if channel is None or session is None:
            raise Disconnected(self._lost)
        self._check_quiet(channel)
        frames = [request_frame(request, body, fds, need_reply=True) for request, body, fds in requests]
        for frame in frames:
            session.admit(Side.BACKEND, frame)
            for fd in frame.fds:
                os.fstat(fd)
        try:
            statuses: list[int] = []
            for start in range(0, len(frames), AT_ONCE):
                statuses += self._send_some(channel, session, frames[start : start + AT_ONCE], owed=start > 0)
            return statuses
        except NothingSent:
            raise
        except BaseException as error:
            self._drop(f"the back-end channel was lost: {error}")
            raise

    def ask(self, request: BackendRequest, body: Payload) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        """Send a request that has a reply of its own; that reply's body, and its fds, which are the caller's.

        Raises as `send_all`.
        """
        channel, session = self._channel, self._session
        if channel is None or session is None:
            raise Disconnected(self._lost)
        self._check_quiet(channel)
        frame: Frame[int] = request_frame(request, body)
        session.admit(Side.BACKEND, frame)
        try:
            channel.send(frame, request.name, owed=False)
            return _admitted(session, request, channel.receive(), Owed.OWN)
        except NothingSent:
            raise
        except BaseException as error:
            self._drop(f"the back-end channel was lost: {error}")
            raise

    def check(self, request: BackendRequest) -> None:
        """Raise Disconnected or LocalProtocolError unless `request`, which wants an answer, can be sent now.

        RemoteProtocolError, and the channel is lost, if something came that nobody asked for.
        """
        if self._channel is None or self._session is None:
            raise Disconnected(self._lost)
        self._check_quiet(self._channel)
        check_gate(BACKEND[request], self._session.state, LocalProtocolError)
        if reply_owed(BACKEND[request], self._session.state, need_reply=True) is Owed.NOTHING:
            text = f"{request.name} wants an answer, and protocol feature REPLY_ACK (bit 3) was not negotiated"
            raise LocalProtocolError(text, request=request.name, limit="REPLY_ACK")

    def lose(self, number: int) -> VhostUserError | OSError:
        """Give the channel up because of what came instead of answers to request `number`; the exception that says why.

        An OSError if nothing was sent, so that nothing can come: the channel is as it was.
        """
        data, fds, error = self.line.take()
        if error < 0:
            return NothingSent(-error, os.strerror(-error))
        owned = [OwnedFd(fd) for fd in fds]
        try:
            self._explain(number, data, owned, error)
        except VhostUserError as reason:
            self._drop(f"the back-end channel was lost: {reason}")
            return reason
        finally:
            for fd in owned:
                fd.close()
        return Disconnected("the back-end channel was lost")

    def _explain(self, number: int, data: bytes, fds: list[OwnedFd], error: int) -> None:
        """Raise what is wrong with bytes that are no acknowledgement, or with their absence."""
        channel, session, rule = self._channel, self._session, BACKEND[number]
        if error == errno.EAGAIN:
            wait = channel.reply_timeout if channel else 0
            raise DeadlineExpired(f"{rule.name} was not answered within {wait:g} s")
        if channel is None or session is None or not data:
            raise Disconnected("the peer closed the connection" if not error else os.strerror(error))
        channel.resume(data, fds)
        while True:
            _admit_answer(session, number, channel.receive(), Owed.ACK)

    def _check_quiet(self, channel: Channel) -> None:
        """Give the channel up if something has come that a request would take for its answer, or its end."""
        if not wait((channel,), 0):
            return
        try:
            frame = channel.receive()
            close_all(frame.fds)
            text = f"a message came that nobody asked for: request {frame.request}, flags {frame.flags:#x}"
            raise RemoteProtocolError(text, request=str(frame.request), fatal=True)
        except VhostUserError as error:
            self._drop(f"the back-end channel was lost: {error}")
            raise

    def _send_some(self, channel: Channel, session: Session, frames: Sequence[Frame[int]], *, owed: bool) -> list[int]:
        """Send requests, none of which may be left out once any was sent, and take their answers."""
        for frame in frames:
            channel.send(frame, BACKEND[frame.request].name, owed=owed)
            owed = True
        return [_status(channel, session, frame) for frame in frames]

    def _drop(self, why: str) -> None:
        channel, self._channel, self._lost = self._channel, None, why
        self.line.use(None, 0)
        if channel:
            channel.close()


def _status(channel: Channel, session: Session, frame: Frame[int]) -> int:
    """The status in the next reply, which must be the one to `frame`."""
    owed = reply_owed(BACKEND[frame.request], session.state, need_reply=True)
    if owed is Owed.NOTHING:
        return 0
    return _admit_answer(session, frame.request, channel.receive(), owed)


def _admitted(
    session: Session, number: int, reply: Frame[OwnedFd], owed: Owed
) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
    """The body and the fds of a reply, which must be the one to that request."""
    try:
        return session.admit_reply(BACKEND[number], reply, owed), reply.fds
    except BaseException:
        close_all(reply.fds)
        raise


def _admit_answer(session: Session, number: int, reply: Frame[OwnedFd], owed: Owed) -> int:
    body, fds = _admitted(session, number, reply, owed)
    close_all(fds)
    if not isinstance(body, U64):
        raise RemoteProtocolError(f"{BACKEND[number].name} was answered without a status", fatal=True)
    return body.value
