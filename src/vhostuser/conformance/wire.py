"""One end of a channel that records what passes, and says in a rule's words what it missed."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable

from ..protocol.framing import Frame
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..testing.wire import Wire
from ..trace.event import Event
from ..transport.fds import HasFileno, OwnedFd, fileno_of
from .outcome import Deviation
from .recorder import Recorder

SHOWN = 32
"""Bytes of half a message that are told."""
OTHER = {Role.FRONTEND: Role.BACKEND, Role.BACKEND: Role.FRONTEND}


class RecordedWire(Wire):
    """A raw end that adds all it sends and receives to `events`; waits that are in vain are Deviations."""

    def __init__(self, sock: socket.socket, events: list[Event], channel: Channel, role: Role, *, deadline: float) -> None:
        super().__init__(sock, deadline=deadline)
        self._sent = Recorder(events, channel, role)
        self._came = Recorder(events, channel, OTHER[role])

    def send(self, data: bytes, fds: Iterable[int | HasFileno] = ()) -> None:
        """As Wire."""
        numbers = [fileno_of(fd) for fd in fds]
        self._sent.take(data, numbers)
        super().send(data, numbers)

    def receive(self) -> Frame[OwnedFd]:
        """The next message; Deviation if none comes in time, or the peer closed."""
        frame = self.receive_or_end()
        if frame is None:
            raise Deviation("a message", "the peer closed the connection")
        return frame

    def receive_or_end(self) -> Frame[OwnedFd] | None:
        """The next message, or None if the peer closed; Deviation if neither comes in time."""
        try:
            frame = super().receive_or_end()
        except AssertionError as error:
            if not self.came:
                raise Deviation("a message, or the end", str(error), hung=True) from None
            self._came.take(self.came, [])
            self._came.end()
            part = f"{len(self.came)} bytes of one ({self.came[:SHOWN].hex()}): {error}"
            raise Deviation("a whole message, or the end", part) from None
        if frame is None:
            self._came.end()
        else:
            self._came.take(frame.pack(), [fd.fileno() for fd in frame.fds])
        return frame

    def comes_within(self, seconds: float) -> bool:
        """A message, or the end, comes in that time."""
        return self._ready(time.monotonic() + seconds)

    def close(self) -> None:
        """Close the socket; what was half sent is recorded."""
        self._sent.end()
        super().close()


def bound(sock: socket.socket, seconds: float) -> socket.socket:
    """Let no send take longer: a peer that reads nothing is a BlockingIOError. The socket."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))
    return sock
