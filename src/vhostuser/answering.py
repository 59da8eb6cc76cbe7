"""The back-end's requests, answered: decode, admit, perform, reply. `perform` is the front-end's method named after them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from .counters import Counters
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, ProtocolError, RemoteProtocolError, RequestFailed
from .faults import device_faults
from .limited_log import LimitedLog
from .memory.table import AnyCore
from .plain.choice import AnyServer, new_server
from .plain.frames import MOST_ASKED, MOST_WATCHED, NOT_TAKEN, TAKE, WAITING
from .protocol.framing import reply_frame
from .protocol.numbers import ProtocolFeature
from .protocol.payloads import U64
from .protocol.rules import BACKEND
from .protocol.rules import Channel as Side
from .protocol.session import Session
from .protocol.state import Owed, reply_owed
from .transport.channel import Channel, OwnedFrame, OwnedMessage
from .transport.fds import OwnedFd, close_all
from .transport.socket import wait

log = logging.getLogger(__name__)
LONGEST_WAIT: Final = 1e6
"""Seconds in one go: poll() counts milliseconds in an int."""
PATIENCE: Final = 2.0
"""Seconds that a request is put off at most, or waits for another back-end: this one may want its answer before it gives a
reply, two front-ends may wait for each other, and a thread for what itself would have to do."""


class PutOff(Exception):
    """A handler can't perform its request while a reply is awaited; it is to be asked again once that is there."""


class Handler(Protocol):
    """Who performs the requests: a method `on_<request>` each, which takes the message, and may return the answer's fd."""

    def refused(self, request: str, reason: str) -> None:
        """A request was refused."""


class Answering:
    """The front-end's end of the back-end channel, which may not be there yet, or no more."""

    def __init__(self, session: Session, handler: Handler) -> None:
        self._session, self._handler = session, handler
        self._log = LimitedLog(log)
        self._counters = Counters()
        self._channel: Channel | None = None
        self._server: AnyServer | None = None
        self._busy = False
        """A request is being answered."""
        self._put_off: tuple[OwnedFrame, float] | None = None
        """A request that is answered later, at this time at the latest, and those behind it later still."""

    @property
    def is_open(self) -> bool:
        """The channel is there."""
        return self._channel is not None

    @property
    def counters(self) -> Counters:
        """What was counted so far."""
        total = replace(self._counters)
        if server := self._server:
            total.messages += server.messages
            total.acks += server.sent_acks
            total.maps += server.maps
            total.unmaps += server.unmaps
        return total

    def open(self, channel: Channel) -> None:
        """Answer what comes on `channel`, which belongs to this object now."""
        self._channel = channel

    def use(self, windows: dict[int, AnyCore]) -> None:
        """Leave SHMEM requests that are entirely right to the plain way, which maps them without a handler."""
        if self._channel and windows:
            self._server = new_server(self._channel.socket, windows, self._channel.reply_timeout)

    def serve_until(self, others: Sequence[int], deadline: float | None) -> int | None:
        """Answer requests until one of the fds `others` is readable, and return it; None once the deadline has passed.

        What the back-end asked before it answered is answered first; one that never stops asking does not hold that up. In a
        handler no more is answered: answers come in the order of the requests.
        """
        if self._busy:
            return next(iter(wait(others, deadline)), None)
        patience = MOST_ASKED
        while True:
            if self._put_off:
                return self._wait_behind(self._put_off[1], others, deadline)
            plain = self._server if len(others) <= MOST_WATCHED else None
            ready = self._serve_plain(plain, others, deadline) if plain else self._serve_all(others, deadline)
            if ready is not None:
                return ready
            if deadline is not None and time.monotonic() >= deadline:
                return next(iter(wait(others, 0)), None)  # what was answered last may have come with one of them
            patience -= 1
            if patience <= 0 and (waiting := wait(others, 0)):
                return waiting[0]

    def _wait_behind(self, until: float, others: Sequence[int], deadline: float | None) -> int | None:
        """Wait for the reply that a request was put off for; then refuse it, if that takes too long, and go on."""
        ready = wait(others, until if deadline is None else min(until, deadline))
        if not ready and (deadline is None or until < deadline):
            self.catch_up(late=True)
            return self.serve_until(others, deadline)
        return next(iter(ready), None)

    def catch_up(self, *, late: bool = False) -> None:
        """Answer what was put off, now that the reply is there; by a no if it is too `late` for that."""
        put_off, self._put_off = self._put_off, None
        if not put_off or not self._channel:
            return
        if late:
            self._refuse(put_off[0], LocalProtocolError("the reply to another request is awaited"))
            self._acknowledge(self._channel, put_off[0], 1, [])
        else:
            self._answer_to(self._channel, put_off[0])

    def serve_waiting(self) -> None:
        """Answer what the back-end has asked so far; one that never stops asking loses its channel."""
        deadline = time.monotonic() + (self._channel.reply_timeout if self._channel else 0)
        self._finish()
        while self._channel and not self._busy and not self._put_off and wait((self._channel,), 0):
            if time.monotonic() > deadline:
                self.end(RemoteProtocolError("the back-end does not stop asking", fatal=True))
                return
            self._answer(self._channel)

    def end(self, error: Exception) -> None:
        """The channel is over; the main channel and what is mapped live on."""
        if self._channel:
            self.close()
            self._counters.closed += 1
            level = logging.INFO if isinstance(error, Disconnected) else logging.WARNING
            log.log(level, "back-end channel closed: %s", error)

    def shutdown(self) -> None:
        """End the wait of whoever sends or receives at the moment, from another thread."""
        if channel := self._channel:
            channel.shutdown()

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel, self._put_off = self._channel, None, None
        self._counters, self._server = self.counters, None
        if channel:
            channel.close()

    def _serve_all(self, others: Sequence[int], deadline: float | None) -> int | None:
        """Wait once, and answer one request the long way if there is one."""
        self._finish()
        channel = self._channel
        ready = wait((*others, channel) if channel else others, deadline)
        if channel and channel.fileno() in ready:
            self._answer(channel)
            return None
        return next((fd for fd in others if fd in ready), None)

    def _serve_plain(self, server: AnyServer, others: Sequence[int], deadline: float | None) -> int | None:
        """Let the plain way serve; then do what it left."""
        ready = WAITING
        while ready == WAITING and self._server is server:  # a signal's handler may have closed it
            left = -1.0 if deadline is None else min(LONGEST_WAIT, max(0.0, deadline - time.monotonic()))
            ready = server.run(others, left)
        if ready in (TAKE, NOT_TAKEN) and self._channel:
            self._take_over(server, self._channel, ready)
        return ready if ready >= 0 else None

    def _finish(self) -> None:
        """Let the plain way finish what an interrupt left half done: nothing may come before it."""
        if not self._busy and self._server and self._server.unfinished:
            self._serve_plain(self._server, (), time.monotonic())

    def _take_over(self, server: AnyServer, channel: Channel, result: int) -> None:
        """Handle the long way what the plain one left: a request that is not plain, or the end of the channel."""
        data, fds, truncated = server.take()
        owned = [OwnedFd(fd) for fd in fds]
        if result == NOT_TAKEN or truncated:
            close_all(owned)
            reason = "fds of a message were lost" if truncated else "the back-end does not take its acknowledgements"
            self.end(RemoteProtocolError(reason, fatal=True))
            return
        try:
            channel.resume(data, owned)
        except ProtocolError as error:
            self.end(error)
            return
        if data or wait((channel,), 0):
            self._answer(channel)

    def _answer(self, channel: Channel) -> None:
        """One message, once round."""
        try:
            frame = channel.receive()
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self.end(error)
            return
        self._counters.messages += 1
        self._answer_to(channel, frame)

    def _answer_to(self, channel: Channel, frame: OwnedFrame) -> None:
        """Perform what was received, and reply."""
        status, given, self._busy = 0, None, True
        try:
            given = self._perform(self._session.admit(Side.BACKEND, frame))
        except PutOff:
            self._put_off = frame, time.monotonic() + PATIENCE
            return
        except (ProtocolError, RequestFailed, OSError) as error:
            if isinstance(error, ProtocolError) and error.fatal:
                self.end(error)
                return
            status = 1
            self._refuse(frame, error)
        except device_faults() as error:
            status = 1
            self._log.exception(f"request {frame.request} failed in {type(self._handler).__name__}")
            self._refuse(frame, error)
        except BaseException:  # the answer would be missing, and the next one be taken for it
            self.end(Disconnected("interrupted in a request"))
            raise
        finally:
            self._busy = False
            close_all(frame.fds)
        with given or contextlib.nullcontext():
            self._acknowledge(channel, frame, status, [given.fileno()] if given else [])

    def _perform(self, message: OwnedMessage) -> OwnedFd | None:
        name = message.rule.name
        method: Callable[[OwnedMessage], OwnedFd | None] | None = getattr(self._handler, f"on_{name.lower()}", None)
        if method is None:
            raise RemoteProtocolError(f"{name} is not supported by this front-end", request=name)
        given = method(message)
        self._counters.maps += name == "SHMEM_MAP"
        self._counters.unmaps += name == "SHMEM_UNMAP"
        return given if isinstance(given, OwnedFd) else None

    def _refuse(self, frame: OwnedFrame, error: BaseException) -> None:
        self._counters.refused += 1
        rule = BACKEND.get(frame.request)
        self._handler.refused(rule.name if rule else str(frame.request), str(error))

    def _acknowledge(self, channel: Channel, frame: OwnedFrame, status: int, fds: Sequence[int]) -> None:
        rule, state = BACKEND.get(frame.request), self._session.state
        if rule is None:
            owed = Owed.ACK if frame.need_reply and state.has(ProtocolFeature.REPLY_ACK) else Owed.NOTHING
        else:
            owed = reply_owed(rule, state, frame.need_reply)
        if owed is Owed.NOTHING or self._channel is not channel:
            return
        self._counters.acks += 1
        try:
            channel.send(reply_frame(frame.request, U64(status), fds), "an acknowledgement")
        except (Disconnected, DeadlineExpired, OSError) as error:
            self.end(error)
