"""The connection on which the next conversation is had: it is made early, for the peer's process can be looked at by it."""

from __future__ import annotations

import socket

from .usage import Held, held, listener_of


class NextOne:
    """A connection that is there, or not yet."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    @property
    def is_there(self) -> bool:
        """The peer was met."""
        return self._sock is not None

    def put(self, sock: socket.socket | None) -> None:
        """The peer was met, or not."""
        self._sock = sock

    def take(self) -> socket.socket | None:
        """It, once; None if it is not there."""
        sock, self._sock = self._sock, None
        return sock

    def held(self) -> Held | None:
        """What the process at the other end holds now; None if nobody can know."""
        pid = listener_of(self._sock) if self._sock else 0
        return held(pid) if pid else None

    def close(self) -> None:
        """Leave the peer, which is somebody else's."""
        if self._sock:
            self._sock.close()
            self._sock = None
