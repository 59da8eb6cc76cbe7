"""One direction of one channel: what comes in at a socket goes out at another one, and no more than one message is held."""

from __future__ import annotations

import errno
import socket
import time
from typing import Final

from ..errors import Disconnected, RemoteProtocolError
from ..protocol.framing import read_header
from ..protocol.numbers import HEADER_SIZE, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION, FrontendRequest
from ..protocol.payloads import HEADER
from ..protocol.rules import Channel
from ..protocol.state import Role
from ..transport.fds import OwnedFd, close_all
from ..transport.socket import WouldBlock, receive_some, send_some

_NOW: Final = int(socket.MSG_DONTWAIT)
"""A socket's own blocking mode may be shared with other processes, so it is left alone."""
_ANSWERS: Final = REPLY | NEED_REPLY
_LATER: Final = 10_000_000
"""Nanoseconds until fds are sent again of which too many are on their way already."""
Piece = tuple[bytes | memoryview, list[OwnedFd]]


class Flow:
    """Messages from `source` to `target`. It holds one at a time: while that has not gone, nothing more is read.

    Call `read` when `source` has something, `send` to pass on what is held, and `release` once it was written down.
    """

    __slots__ = (
        *("channel", "sender", "source", "target", "data", "fds", "pieces", "extra", "whole", "fault", "raw", "lost"),
        *("ended", "gone", "over", "blocked", "paused_until", "_size", "_taken", "_started", "_ahead", "_went"),
    )

    def __init__(self, channel: Channel, sender: Role, source: socket.socket, target: socket.socket) -> None:
        self.channel, self.sender, self.source, self.target = channel, sender, source, target
        self.data = b""
        """What has come of the message that is held."""
        self.fds: list[OwnedFd] = []
        """Its fds."""
        self.pieces: list[Piece] = []
        """What has not gone of it, and the fds that go with the first byte of each piece."""
        self.extra: list[Piece] = []
        """What goes besides, between two messages: answers in the peer's stead."""
        self.whole = False
        """What is held is a message."""
        self.fault = ""
        """Why the bytes that are held are no message, if they are none."""
        self.raw = False
        """A header was wrong: what follows is passed on as it comes."""
        self.lost = False
        """Fds were lost: this process may open no more, or they were more than one message may carry."""
        self.ended = False
        """Nothing more comes."""
        self.gone = False
        """Nobody takes what comes."""
        self.over = False
        """Its end was passed on."""
        self.blocked = False
        """`target` has no room for now."""
        self.paused_until = 0
        """What is held may not go before (time.monotonic_ns)."""
        self._size, self._taken, self._started = HEADER_SIZE, False, False
        self._ahead: list[tuple[bytes, list[int], bool]] = []
        """What compiled code has read and left: bytes, fds, and whether fds were lost."""
        self._went = 0
        """Bytes of that which it has sent."""

    @property
    def sent(self) -> bool:
        """What is held has all gone, or can't go anywhere."""
        return self.gone or not self.pieces

    @property
    def left(self) -> int:
        """Bytes of what is held that have not gone."""
        return sum(len(data) for data, _ in self.pieces)

    @property
    def done(self) -> bool:
        """Nothing more comes, and all has gone."""
        return self.ended and not (self.pieces or self.extra)

    @property
    def reads(self) -> bool:
        """It wants to hear when `source` has something."""
        return not (self.ended or self.gone or self._taken)

    @property
    def clear(self) -> bool:
        """Nothing is in the way of a plain message: whoever reads one here may send it at once."""
        return not (self.data or self.extra or self.raw or self.paused_until or self.ended or self.gone)

    @property
    def hands_over(self) -> bool:
        """What is held is the front-end's SET_BACKEND_REQ_FD with its fd, or may become that."""
        if self.channel is not Channel.FRONTEND or self.sender is not Role.FRONTEND or not self.fds or self.raw:
            return False
        return len(self.data) < HEADER_SIZE or int.from_bytes(self.data[:4], "little") == FrontendRequest.SET_BACKEND_REQ_FD

    @property
    def calm(self) -> bool:
        """Nothing but the next message is awaited."""
        return not (self._taken or self.ended or self.gone or self.paused_until)

    def read(self) -> bool:
        """Read what is there; whether there is something to write down: a message, bytes that are none, or half a one."""
        while True:
            try:
                data, fds = self._receive()
            except WouldBlock:
                return False
            except Disconnected:
                data, fds = b"", []
            except RemoteProtocolError:
                data, fds, self.lost = b"", [], True
            if not data:
                close_all(fds)
                self.ended, self._taken = True, bool(self.data)
                return self._taken
            if self.data or len(data) != HEADER_SIZE or self.raw:
                self._add(data, fds)
            else:
                self.data, self.fds = data, fds
                self.pieces.append((data, fds))
            if len(self.data) == HEADER_SIZE and not self.raw:
                self._read_header()
            if len(self.data) == self._size or self.raw:
                self._taken, self.whole = True, not self.raw
                if self._went:
                    self.pieces = [(memoryview(self.data)[self._went :], [])]
                    self._started, self._went = True, 0
                return True

    def _receive(self) -> tuple[bytes, list[OwnedFd]]:
        """What compiled code has left, or else what is there."""
        if not self._ahead:
            return receive_some(self.source, MAX_PAYLOAD if self.raw else self._size - len(self.data), _NOW)
        data, numbers, lost = self._ahead.pop(0)
        fds = [OwnedFd(number) for number in numbers]
        if lost:
            close_all(fds)
            raise RemoteProtocolError("fds of a message were lost", field="fds", fatal=True)
        return data, fds

    def _add(self, data: bytes, fds: list[OwnedFd]) -> None:
        """Take bytes, whose fds stay at the byte that they came with."""
        if fds or not self.pieces:
            self.pieces.append((data, fds))
            self.fds = [*self.fds, *fds]
        else:
            last, with_it = self.pieces[-1]
            self.pieces[-1] = (bytes(last) + data, with_it)
        self.data += data

    def _read_header(self) -> None:
        """Learn how long the message is; if the header is wrong, what comes is no message from here on."""
        _, flags, size = HEADER.unpack(self.data)
        if flags & ~_ANSWERS == VERSION and size <= MAX_PAYLOAD:
            self._size += size
            return
        try:
            read_header(self.data)
        except RemoteProtocolError as error:
            self.raw, self.fault = True, str(error)

    def put(self, data: bytes) -> None:
        """Let these bytes go in place of what is held, with its fds."""
        self.pieces = [(data, self.fds)] if data else []

    def insert(self, data: bytes) -> None:
        """Let these bytes go to `target` too, behind the message that is held, if one is whole: see `extra`."""
        self.extra.append((data, []))
        self._started = self._started or (self._taken and bool(self.pieces))

    def send(self, *, inserted_only: bool = False) -> None:
        """Send what is held, or only what was inserted; see `blocked`."""
        if inserted_only and (self._started or not self.extra):
            return  # it goes behind what is half gone, for which `blocked` is to stay as it is
        self.blocked = False
        if self.gone:
            self.paused_until = 0
            return
        if self.paused_until and time.monotonic_ns() < self.paused_until:
            return
        self.paused_until = 0
        if self.extra and not self._started:
            self._send_each(self.extra)
        if self.pieces and not inserted_only and (self._started or not self.extra):
            self._started = True
            self._send_each(self.pieces)

    def _send_each(self, pieces: list[Piece]) -> None:
        while pieces and not self.blocked and not self.paused_until:
            data, fds = pieces[0]
            sent = self._send(data, fds)
            if self.gone:
                return
            if sent == len(data):
                del pieces[0]
            elif sent:
                pieces[0] = (memoryview(data)[sent:], [])

    def _send(self, data: bytes | memoryview, fds: list[OwnedFd]) -> int:
        try:
            return send_some(self.target, data, [fd.fileno() for fd in fds] if fds else (), _NOW)
        except WouldBlock:
            self.blocked = True
        except Disconnected as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ETOOMANYREFS:
                self.paused_until = time.monotonic_ns() + _LATER
            else:
                self.gone = True
        return 0

    def go_on(self, pieces: list[tuple[bytes, list[int], bool]], went: int) -> None:
        """Take what compiled code has read and left (bytes, fds, fds were lost), and how much of that it has sent."""
        self._ahead, self._went = pieces, went

    def send_at_once(self) -> bool:
        """Send a whole message without fds that nothing is in the way of, and let go of it; whether that went in one go.

        The short way, which nearly all messages take. Where it is not that simple, `send` goes on.
        """
        if self.fds or self.extra or self._started or not self.whole or self.paused_until:
            return False
        try:
            sent = send_some(self.target, self.data, (), _NOW)
        except (WouldBlock, Disconnected):
            return False
        if sent < len(self.data):
            self.pieces, self._started = [(memoryview(self.data)[sent:], [])], True
            return False
        self.data, self._size = b"", HEADER_SIZE
        self.pieces.clear()
        self.whole = self._taken = self._started = False
        return True

    def release(self) -> None:
        """What was held has gone and is written down: close its fds, and go on to the next."""
        if self._taken:
            if self.fds:
                close_all(self.fds)
            self.data, self.fds, self.pieces, self.fault = b"", [], [], ""
            self.whole = self._taken = self._started = False
            self._size = HEADER_SIZE

    def close(self) -> None:
        """Close the fds that it holds; the sockets are not its own."""
        close_all(self.fds)
        close_all(OwnedFd(number) for _, numbers, _ in self._ahead for number in numbers)
        self._ahead = []
        self.fds, self.pieces = [], []
