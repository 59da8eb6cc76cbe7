"""One end of a socket that sends anything and says what came back."""

from __future__ import annotations

import array
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from ..protocol.framing import Frame
from ..protocol.layout import Payload
from ..protocol.numbers import HEADER_SIZE, MAX_FDS, NEED_REPLY, REPLY, VERSION
from ..protocol.payloads import HEADER, U64
from ..transport.fds import HasFileno, OwnedFd, close_all, fileno_of
from .files import message

DEADLINE: Final = 10.0
"""Seconds that a wait may take before the test fails."""
ACK: Final = VERSION | REPLY


class Wire:
    """A raw end of a connection: no rule of the protocol holds it back, every wait has a deadline.

    `pump`, if given, is called after everything that is sent: it lets a peer in this very thread do its work.
    """

    def __init__(self, sock: socket.socket, *, pump: Callable[[], None] | None = None, deadline: float = DEADLINE) -> None:
        self.socket, self.pump, self.deadline = sock, pump, deadline
        self.came = b""
        """What has come of the message that was received last."""
        sock.setblocking(True)

    def fileno(self) -> int:
        """The socket's fd."""
        return self.socket.fileno()

    # Sending

    def send(self, data: bytes, fds: Iterable[int | HasFileno] = ()) -> None:
        """Send bytes, with fds at the first of them. A peer that is gone is no error here."""
        numbers = array.array("i", [fileno_of(fd) for fd in fds])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        try:
            sent = self.socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
            while sent < len(data):
                sent += self.socket.send(data[sent:], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass
        if self.pump:
            self.pump()

    def request(
        self,
        request: int,
        body: Payload | bytes | None = None,
        *,
        fds: Sequence[int | HasFileno] = (),
        flags: int = VERSION,
        size: int | None = None,
    ) -> None:
        """Send one message, right or wrong."""
        self.send(message(request, body, flags=flags, size=size), fds)

    def end(self) -> None:
        """Send no more: the peer sees the end of the stream."""
        self.socket.shutdown(socket.SHUT_WR)
        if self.pump:
            self.pump()

    # Receiving

    def receive(self) -> Frame[OwnedFd]:
        """The next message, whose fds are yours to close. AssertionError if none comes in time, or the peer closed."""
        frame = self.receive_or_end()
        if frame is None:
            raise AssertionError("the peer closed the connection, a message was expected")
        return frame

    def receive_or_end(self) -> Frame[OwnedFd] | None:
        """The next message, or None if the peer closed."""
        end = time.monotonic() + self.deadline
        self.came = b""
        fds: list[OwnedFd] = []
        try:
            header = self._read(HEADER_SIZE, end, fds)
            if not header:
                return None
            request, flags, size = HEADER.unpack(header)
            payload = self._read(size, end, fds)
            if len(payload) < size:
                raise AssertionError(f"the peer closed after the header of a message with {size} bytes")
            return Frame(request, flags, payload, tuple(fds))
        except BaseException:
            close_all(fds)
            raise

    def _read(self, size: int, end: float, fds: list[OwnedFd]) -> bytes:
        """`size` bytes; b"" if the peer closed before the first."""
        data = b""
        space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        while len(data) < size:
            if not self._ready(end):
                raise AssertionError(f"nothing came within {self.deadline:g} s ({len(data)} of {size} bytes)")
            try:
                piece, control, _, _ = self.socket.recvmsg(size - len(data), space, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                piece, control = b"", []
            for _, _, payload in control:
                fds.extend(OwnedFd(number) for number in array.array("i", payload))
            if not piece:
                if data:
                    raise AssertionError(f"the peer closed after {len(data)} of {size} bytes")
                return b""
            data += piece
            self.came += piece
        return data

    def _ready(self, end: float) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(max(0.0, end - time.monotonic()) * 1000))

    # One verb a case: send, receive, and check what the specification says

    def reply(
        self, request: int, body: Payload | bytes | None = None, *, fds: Sequence[int | HasFileno] = (), flags: int = VERSION
    ) -> Frame[OwnedFd]:
        """Send a request and return the reply to it, whose flags and request number are right."""
        self.request(request, body, fds=fds, flags=flags)
        frame = self.receive()
        if (frame.request, frame.flags) != (int(request), ACK):
            raise AssertionError(f"expected the reply to {request!r}, got request {frame.request}, flags {frame.flags:#x}")
        return frame

    def status(self, request: int, body: Payload | bytes | None = None, *, fds: Sequence[int | HasFileno] = ()) -> int:
        """Send a request with need_reply set and return the status in its acknowledgement."""
        frame = self.reply(request, body, fds=fds, flags=VERSION | NEED_REPLY)
        if frame.fds or len(frame.payload) != U64.STRUCT.size:
            raise AssertionError(f"an acknowledgement of {len(frame.payload)} bytes and {len(frame.fds)} fds")
        return U64.unpack(frame.payload).value

    def accepted(self, request: int, body: Payload | bytes | None = None, *, fds: Sequence[int | HasFileno] = ()) -> None:
        """The peer says yes."""
        if status := self.status(request, body, fds=fds):
            raise AssertionError(f"{request!r} was refused with status {status}")

    def refused(self, request: int, body: Payload | bytes | None = None, *, fds: Sequence[int | HasFileno] = ()) -> None:
        """The peer says no, and the connection lives."""
        if not self.status(request, body, fds=fds):
            raise AssertionError(f"{request!r} was accepted")

    def closes(self, data: bytes = b"", fds: Sequence[int | HasFileno] = ()) -> None:
        """Send bytes; the peer says nothing and closes the connection."""
        if data:
            self.send(data, fds)
        frame = self.receive_or_end()
        if frame is not None:
            close_all(frame.fds)
            raise AssertionError(f"expected the end, got request {frame.request}, flags {frame.flags:#x}")

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
