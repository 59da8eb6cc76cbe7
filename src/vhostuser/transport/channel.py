"""Whole frames over one connected socket, with deadlines."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError
from ..protocol.framing import Decoder, Frame
from ..protocol.session import Message
from .fds import OwnedFd, close_all
from .socket import LONGEST_POLL, NO_WAIT, WouldBlock, receive_some, send_all, wait

PARTIAL_TIMEOUT: Final = 5.0
REPLY_TIMEOUT: Final = 10.0
OwnedFrame = Frame[OwnedFd]
OwnedMessage = Message[OwnedFd]


class Channel:
    """One socket of a vhost-user connection: the main channel or the back-end channel.

    Waits at most `reply_timeout` seconds for a message to begin, and `partial_timeout` seconds from there to its end. One
    thread may receive while another sends. It waits in poll(): whoever gave the socket may still have it, with its timeouts.
    """

    def __init__(
        self, sock: socket.socket, *, partial_timeout: float = PARTIAL_TIMEOUT, reply_timeout: float = REPLY_TIMEOUT
    ) -> None:
        self.socket = sock
        self.partial_timeout = partial_timeout
        self.reply_timeout = reply_timeout
        self._decoder: Decoder[OwnedFd] = Decoder()
        self._ahead: list[OwnedFrame] = []
        try:
            if math.isnan(partial_timeout + reply_timeout):
                raise ValueError("a timeout must be a number of seconds, not NaN")
            limit = _as_timeval(reply_timeout)
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        except (OSError, ValueError):
            sock.close()
            raise

    def fileno(self) -> int:
        """The socket's fd, to wait on; -1 once closed."""
        return self.socket.fileno()

    def receive(self) -> OwnedFrame:
        """The next message, whose fds the caller now owns.

        Raises Disconnected at the end of the stream, DeadlineExpired, or a fatal RemoteProtocolError. After any of them
        the channel is good for nothing but `close`.
        """
        if self._ahead:
            return self._ahead.pop(0)
        decoder, begun = self._decoder, self._decoder.partial
        deadline = time.monotonic() + (self.partial_timeout if begun else self.reply_timeout)
        try:
            while True:
                try:
                    data, fds = receive_some(self.socket, decoder.want, NO_WAIT)
                except WouldBlock:
                    self._wait_for_more(deadline, begun=begun)
                    continue
                if not data:
                    decoder.close()
                    raise Disconnected("the peer closed the connection")
                if fds and decoder.partial:
                    close_all(fds)
                    raise RemoteProtocolError("fds came behind the first byte of a message", field="fds", fatal=True)
                if frames := decoder.feed(data, fds):
                    return frames[0]
                if not begun:
                    begun, deadline = True, time.monotonic() + self.partial_timeout
        except BaseException:
            close_all(decoder.abandon())
            raise

    def _wait_for_more(self, deadline: float, *, begun: bool) -> None:
        """Wait for a message, or for more of one that has begun."""
        if wait((self.socket,), deadline):
            return
        if begun:
            raise DeadlineExpired(f"a message was not complete within {self.partial_timeout:g} s")
        raise DeadlineExpired(f"no message within {self.reply_timeout:g} s")

    def send(self, frame: Frame[int], what: str, *, owed: bool = True) -> None:
        """Send a message; its fds stay the caller's. `what` names it in errors, `owed` is as in `send_all`."""
        send_all(self.socket, frame.pack(), frame.fds, self.reply_timeout, what, owed=owed)

    def resume(self, data: bytes, fds: Sequence[OwnedFd]) -> None:
        """Take over what somebody else has read from the socket: the next `receive` goes on from there."""
        try:
            self._ahead += self._decoder.feed(data, fds)
        except BaseException:
            close_all(self._decoder.abandon())
            raise

    def ended(self) -> bool:
        """The peer sends no more; what it has sent may wait still."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shutdown(self) -> None:
        """End the connection: whoever waits on it, in this thread or another, gets Disconnected."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Nobody may be waiting on it."""
        for frame in self._ahead:
            close_all(frame.fds)
        close_all(self._decoder.abandon())
        self.socket.close()


def _as_timeval(seconds: float) -> bytes:
    """A timeout as the kernel takes it, to which 0 would be none."""
    whole, fraction = divmod(min(max(0.0, seconds), LONGEST_POLL / 1000), 1)
    return struct.pack("@ll", int(whole), max(1, int(fraction * 1e6)))
