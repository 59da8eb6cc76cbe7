"""Our front-end in a process of its own, which connects again and again: `python front.py right|careless SOCKET`.

The careless one aborts where a back-end breaks the protocol, as some do by an assertion.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from vhostuser.errors import DeadlineExpired, Disconnected, RemoteProtocolError, RequestFailed
from vhostuser.frontend import Frontend
from vhostuser.transport.listen import AddressError, connect

PATIENCE = 30.0
REPLY = 2.0


def main(how: str, path: str) -> None:
    """Go on until nobody listens any more."""
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            sock = connect(path, wait=PATIENCE)
        except AddressError:
            return
        try:
            use(sock)
        except RemoteProtocolError:
            if how == "careless":
                os.kill(os.getpid(), signal.SIGABRT)


def use(sock: socket.socket) -> None:
    """Start a ring, and serve the back-end until it is gone."""
    with contextlib.suppress(Disconnected, DeadlineExpired, RequestFailed), Frontend(sock, reply_timeout=REPLY) as frontend:
        frontend.share_memory(1 << 16)
        frontend.start_queue(0, size=16)
        frontend.serve()


if __name__ == "__main__":
    main(*sys.argv[1:3])
