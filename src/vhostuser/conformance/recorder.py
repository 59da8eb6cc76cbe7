"""Bytes of both directions of a channel as the messages of a capture."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..errors import RemoteProtocolError
from ..protocol.framing import read_header
from ..protocol.numbers import HEADER_SIZE
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..trace.describe import described
from ..trace.event import Event, FdNote, Message


class Recorder:
    """Takes the bytes that one sender sends on one channel, in whatever pieces, and adds messages to `events`."""

    def __init__(self, events: list[Event], channel: Channel, sender: Role) -> None:
        self._events, self._channel, self._sender = events, channel, sender
        self._data = b""
        self._fds: tuple[FdNote, ...] = ()
        self._broken = False

    def take(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """The next bytes, and the fds that go with the first of them."""
        self._fds += tuple(described(fd) for fd in fds)
        self._data += data
        while size := self._whole():
            self._add(self._data[:size], whole=True)
            self._data = self._data[size:]
        if self._broken and self._data:
            self.end()

    def end(self) -> None:
        """The stream is over: what is left is no message."""
        if self._data:
            self._add(self._data, whole=False)
        self._data = b""

    def _whole(self) -> int:
        """How many bytes the first message has, if it is there; else 0."""
        if self._broken or len(self._data) < HEADER_SIZE:
            return 0
        try:
            size = HEADER_SIZE + read_header(self._data[:HEADER_SIZE]).size
        except RemoteProtocolError:
            self._broken = True
            return 0
        return size if len(self._data) >= size else 0

    def _add(self, data: bytes, *, whole: bool) -> None:
        self._events.append(Message(time.time_ns(), 0, self._channel, self._sender, data, self._fds, whole))
        self._fds = ()
