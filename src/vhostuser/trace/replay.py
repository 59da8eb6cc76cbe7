"""Plays one side of a recorded conversation against a live peer, and tells what the peer does differently."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Final, Self

from ..errors import Disconnected, RemoteProtocolError
from ..protocol.framing import Decoder, Frame
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..transport.fds import OwnedFd, close_all
from ..transport.socket import WouldBlock, receive_some, send_all, wait
from .clock import now
from .decoded import fields_of
from .describe import described
from .differences import NOTHING, Difference, differences
from .event import Event, Message
from .meaning import understood
from .script import Script, Step
from .stand_ins import StandIns
from .words import joined

TIMEOUT: Final = 5.0
"""Seconds that a message may take to come, or to go."""
_IN_A_RING: Final = "it may have been asked for in a ring, for which a replay has no driver"
_NOW: Final = int(socket.MSG_DONTWAIT)
_HANDOVER: Final = (Channel.FRONTEND, Q.SET_BACKEND_REQ_FD)
_OTHER: Final = {Role.FRONTEND: Role.BACKEND, Role.BACKEND: Role.FRONTEND}


class _Lane:
    """One channel: our end of it, and what has come of the next message."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # a peer that reads nothing is waited for with a deadline
        self.socket, self._decoder = sock, Decoder[OwnedFd]()

    def receive(self) -> list[Frame[OwnedFd]]:
        """The messages that are whole now. Disconnected at the end of the stream."""
        try:
            data, fds = receive_some(self.socket, self._decoder.want, _NOW)
        except WouldBlock:
            return []
        if not data:
            close_all(fds)
            self._decoder.close()
            raise Disconnected("the peer closed the connection")
        return self._decoder.feed(data, fds)

    def close(self) -> None:
        close_all(self._decoder.abandon())
        self.socket.close()


class Replay:
    """`role`'s side of a capture against the peer behind `sock`, which is this object's. Iterate over `differences`.

    `ignored` are fields that may differ, as addresses of the front-end's do. `files` opens the files that were recorded
    where they still are. With `recorded_speed` nothing is sent sooner after what came before it than it was then.
    """

    def __init__(
        self,
        events: Iterable[Event],
        role: Role,
        sock: socket.socket,
        *,
        connection: int | None = None,
        timeout: float = TIMEOUT,
        ignored: Collection[str] = (),
        files: bool = False,
        recorded_speed: bool = False,
    ) -> None:
        self._script, self._role = Script(events, role, connection), role
        self._lanes = {Channel.FRONTEND: _Lane(sock)}
        self._stand_ins = StandIns(files=files)
        self._timeout, self._ignored, self._paced = timeout, frozenset(ignored), recorded_speed
        self._last = time.monotonic_ns()
        self._gone: Disconnected | None = None
        """The main channel has ended."""

    @property
    def played(self) -> int:
        """Messages that were sent, or came."""
        return self._script.begun

    def differences(self) -> Iterator[Difference]:
        """Play, and tell each difference as it shows; ends early where the conversation is another one.

        Raises Disconnected or RemoteProtocolError if the peer is gone, or breaks the protocol, and DeadlineExpired if it
        takes no more.
        """
        while not self._script.over:
            if step := self._script.to_send():
                self._send(step)
                continue
            came = self._wait(time.monotonic() + self._timeout)
            if not came:
                step = self._script.due()
                if step:
                    yield self._missing(step)
                return
            for channel in came:
                for found in self._take(channel):
                    yield found
                    if not found.field:
                        return
        yield from self._extra()

    def close(self) -> None:
        """Close everything."""
        for lane in self._lanes.values():
            lane.close()
        self._stand_ins.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _send(self, step: Step) -> None:
        """Send a message with stand-ins for its fds, after as long as it took then if that matters."""
        if self._paced:
            time.sleep(max(0, step.gap - (time.monotonic_ns() - self._last)) / 1e9)
        lane = self._lanes.get(step.channel)
        if lane is None and self._gone:
            raise Disconnected(f"{self._gone} before message {step.what.index}, {step.what.name}, was sent")
        if lane is None:
            text = f"message {step.what.index}: {step.what.name} can't be sent: there is no back-end channel"
            raise RemoteProtocolError(text, request=step.what.name)
        fds = self._stand_ins.for_message(step.message)
        try:
            send_all(lane.socket, step.message.data, [fd.fileno() for fd in fds], self._timeout, step.what.name)
        except Disconnected:
            text = f"the peer closed the connection before message {step.what.index}, {step.what.name}, was sent"
            raise Disconnected(text) from None
        finally:
            close_all(fds)
        if channel := self._stand_ins.take_channel():
            self._open(channel)
        self._did(step)

    def _did(self, step: Step) -> None:
        self._script.did(step)
        self._last = time.monotonic_ns()

    def _open(self, sock: socket.socket) -> None:
        """Talk on another back-end channel from now on."""
        if old := self._lanes.pop(Channel.BACKEND, None):
            old.close()
        self._lanes[Channel.BACKEND] = _Lane(sock)

    def _wait(self, deadline: float) -> list[Channel]:
        """The channels on which something came; none if nothing did in time.

        Disconnected if the main channel has ended, and nothing is left on the other one.
        """
        ready = wait([lane.socket for lane in self._lanes.values()], 0 if self._gone else deadline)
        if self._gone and not ready:
            step = self._script.due()
            due = f" where message {step.what.index}, {step.what.name}, was due" if step else ""
            raise Disconnected(f"{self._gone}{due}")
        return [channel for channel, lane in self._lanes.items() if lane.socket.fileno() in ready]

    def _take(self, channel: Channel) -> Iterator[Difference]:
        """What came on a channel, compared with what was to come."""
        try:
            frames = self._lanes[channel].receive()
        except Disconnected as error:
            self._lanes.pop(channel).close()
            self._gone = error if channel is Channel.FRONTEND else self._gone
            return
        for frame in frames:
            live = self._message(channel, frame)
            step = self._script.expected(channel)
            if step is None:
                yield self._besides(live)
                return
            yield from differences(step.what, live, ignored=self._ignored)
            self._did(step)

    def _missing(self, step: Step) -> Difference:
        """A message that has not come."""
        by_itself = step.channel is Channel.BACKEND and step.message.asks and not step.ours
        note = _IN_A_RING if by_itself and not self._script.awaits_answer else ""
        return Difference(step.what.index, step.what.name, "", _told(step), f"{NOTHING} in {self._timeout:g} s", note)

    def _besides(self, live: Message) -> Difference:
        """A message that the capture does not have; it has the number of what was due, or would come next."""
        step, what = self._script.due(), understood(live, 0)
        index = step.what.index if step else self._script.end
        return Difference(index, what.name, "", NOTHING, joined(fields_of(what.body)) or f"{len(live.payload)} bytes")

    def _message(self, channel: Channel, frame: Frame[OwnedFd]) -> Message:
        """A frame as a capture would have it. Its fds are closed, but for the back-end channel."""
        try:
            notes = tuple(described(fd.fileno()) for fd in frame.fds)
            if self._role is Role.BACKEND and frame.fds and (channel, frame.request) == _HANDOVER:
                self._open(_as_socket(frame.fds[0]))
            return Message(now(), 0, channel, _OTHER[self._role], frame.pack(), notes)
        finally:
            close_all(frame.fds)

    def _extra(self) -> Iterator[Difference]:
        """A message that comes besides: what is there already, or comes before the front-end ends it, which is its part."""
        patience = self._timeout if self._role is Role.BACKEND else 0.0
        deadline = time.monotonic() + patience
        with contextlib.suppress(Disconnected):
            while came := self._wait(deadline):
                for found in (each for channel in came for each in self._take(channel)):
                    yield found
                    return


def _as_socket(fd: OwnedFd) -> socket.socket:
    """The socket that an fd is. RemoteProtocolError if it is none."""
    try:
        sock = socket.socket(fileno=fd.fileno())
    except OSError as error:
        raise RemoteProtocolError(f"SET_BACKEND_REQ_FD came with no socket: {error.strerror}", field="fds") from None
    fd.detach()
    return sock


def _told(step: Step) -> str:
    return f"from the {step.message.sender.value}" if not step.ours else "to be sent"
