"""The back-end's own requests: one at a time over the back-end channel, each waited for until it is answered."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from .errors import Disconnected, VhostUserError
from .protocol.framing import Frame, request_frame
from .protocol.layout import Payload
from .protocol.numbers import BackendRequest
from .protocol.payloads import U64
from .protocol.rules import BACKEND
from .protocol.rules import Channel as Side
from .protocol.session import Owed, Session, reply_owed
from .transport.channel import Channel

NO_CHANNEL: Final = "the front-end has given no back-end channel (SET_BACKEND_REQ_FD)"


class Port:
    """Where a device's requests to the front-end leave.

    The thread that serves the front-end opens, renews and closes it; any thread may send, with `lock` held.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._lost = "no front-end is connected"

    @property
    def running(self) -> bool:
        """A driver runs the device, so that shared memory may be mapped."""
        return self._session is not None and self._session.state.running

    @property
    def channel(self) -> Channel | None:
        """The open channel."""
        return self._channel

    def connect(self, session: Session) -> None:
        """A front-end is there; it has not given its channel yet."""
        self._session, self._lost = session, NO_CHANNEL

    def open(self, channel: Channel) -> None:
        """Use `channel`; one that was there before is closed."""
        self.shutdown()
        with self.lock:
            self._drop(NO_CHANNEL)
            self._channel = channel

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

    def send_all(self, requests: Sequence[tuple[BackendRequest, Payload | None, Sequence[int]]]) -> list[int]:
        """Send requests, then take their answers in the same order: a status each, 0 for yes.

        A request without an answer (REPLY_ACK was not negotiated) counts as 0. Raises LocalProtocolError before anything
        is sent; Disconnected, DeadlineExpired or RemoteProtocolError when the channel is lost.
        """
        channel, owed = self._channel, []
        if channel is None or self._session is None:
            raise Disconnected(self._lost)
        frames = [request_frame(request, body, fds, need_reply=True) for request, body, fds in requests]
        for frame in frames:
            self._session.admit(Side.BACKEND, frame)
        try:
            for frame in frames:
                owed.append(self._send(channel, frame))
            return [self._status(channel, frame, due) for frame, due in zip(frames, owed, strict=True)]
        except VhostUserError as error:
            self._drop(f"the back-end channel was lost: {error}")
            raise

    def _send(self, channel: Channel, frame: Frame[int]) -> Owed:
        rule = BACKEND[frame.request]
        channel.send(frame, rule.name)
        return reply_owed(rule, self._session.state, need_reply=True) if self._session else Owed.NOTHING

    def _status(self, channel: Channel, frame: Frame[int], owed: Owed) -> int:
        """The status in the next reply, which must be the one to `frame`."""
        if owed is Owed.NOTHING or self._session is None:
            return 0
        reply = channel.receive()
        try:
            body = self._session.admit_reply(BACKEND[frame.request], reply, owed)
        finally:
            for fd in reply.fds:
                fd.close()
        return body.value if isinstance(body, U64) else 0

    def _drop(self, why: str) -> None:
        channel, self._channel, self._lost = self._channel, None, why
        if channel:
            channel.close()
