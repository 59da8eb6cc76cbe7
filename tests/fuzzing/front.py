"""Our front-end in a process of its own, which connects again and again: `python front.py right|careless SOCKET`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from vhostuser.errors import VhostUserError
from vhostuser.frontend import Frontend
from vhostuser.transport.listen import AddressError, connect

PATIENCE = 30.0
REPLY = 2.0
ROOM = 2


def main(how: str, path: str) -> None:
    """Go on until nobody listens any more."""
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            sock = connect(path, wait=PATIENCE)
        except AddressError:
            return
        with contextlib.suppress(VhostUserError), Frontend(sock, reply_timeout=REPLY) as frontend:
            if how == "careless" and frontend.queue_count > ROOM:
                os.kill(os.getpid(), signal.SIGABRT)
            frontend.share_memory(1 << 16)
            frontend.start_queue(0, size=16)
            frontend.serve()


if __name__ == "__main__":
    main(*sys.argv[1:3])
