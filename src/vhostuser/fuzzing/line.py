"""Our end of one channel: sends anything, waits a little, and writes down what passed if somebody wants to know."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from ..conformance.recorder import Recorder
from ..conformance.wire import OTHER
from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError
from ..protocol.framing import Decoder, Frame
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.event import Event
from ..transport.fds import OwnedFd, close_all
from ..transport.socket import WouldBlock, receive_some, send_all, wait
from .act import Act
from .fds import CHANNEL, made

_NOW: Final = int(socket.MSG_DONTWAIT)
STUCK: Final = 1.0
"""Seconds after which a peer that takes nothing is left alone."""


class Line:
    """`sock` is this object's. With `events`, all that passes is added there."""

    def __init__(self, sock: socket.socket, channel: Channel, role: Role, events: list[Event] | None = None) -> None:
        sock.setblocking(False)
        self.socket, self._decoder = sock, Decoder[OwnedFd]()
        self.over = False
        self._sent = None if events is None else Recorder(events, channel, role)
        self._came = None if events is None else Recorder(events, channel, OTHER[role])

    def fileno(self) -> int:
        """The socket's fd."""
        return self.socket.fileno()

    def say(self, act: Act) -> socket.socket | None:
        """Send a message with its fds; our end of the channel that went with it. If the peer is gone, it is `over`."""
        ours: socket.socket | None = None
        fds: list[OwnedFd] = []
        try:
            for kind in act.fds:
                if kind == CHANNEL:
                    if ours:
                        ours.close()
                    ours, theirs = socket.socketpair()
                    fds.append(OwnedFd(theirs.detach()))
                else:
                    fds.append(made(kind))
            self.send(act.pack(), [fd.fileno() for fd in fds], act.split)
        finally:
            close_all(fds)
        return ours

    def send(self, data: bytes, fds: list[int], split: int = 0) -> None:
        """Send bytes, with fds at the first of them, and a moment between the two pieces of what is `split`."""
        if self._sent:
            self._sent.take(data, fds)
        try:
            send_all(self.socket, data[: split or len(data)], fds, STUCK, "a message")
            if split and data[split:]:
                os.sched_yield()
                send_all(self.socket, data[split:], (), STUCK, "a message")
        except (Disconnected, DeadlineExpired, OSError):
            self.over = True

    def receive(self) -> list[Frame[OwnedFd]]:
        """The messages that are whole now, whose fds the caller closes. RemoteProtocolError if their header is wrong."""
        frames: list[Frame[OwnedFd]] = []
        try:
            while not self.over:
                data, fds = receive_some(self.socket, self._decoder.want, _NOW)
                if not data:
                    close_all(fds)
                    self.over = True
                if self._came and data:
                    self._came.take(data, [fd.fileno() for fd in fds])
                frames += self._decoder.feed(data, fds)
        except WouldBlock:
            pass
        except Disconnected:
            self.over = True
        except RemoteProtocolError:
            self.over = True
            close_all(fd for frame in frames for fd in frame.fds)
            raise
        return frames

    def close(self) -> None:
        """Close it."""
        for recorder in (self._sent, self._came):
            if recorder:
                recorder.end()
        close_all(self._decoder.abandon())
        self.socket.close()


def ready(lines: list[Line], seconds: float) -> list[Line]:
    """The lines on which something came, or that ended, within so many seconds."""
    found = wait(lines, time.monotonic() + seconds)
    return [line for line in lines if line.fileno() in found]
