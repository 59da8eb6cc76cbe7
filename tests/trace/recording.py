"""Sessions recorded through a proxy, for others to play again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from vhostuser.testing import DEADLINE
from vhostuser.trace.event import Event, Message
from vhostuser.trace.proxy import Proxy
from vhostuser.transport.listen import connect


@contextlib.contextmanager
def recorded(back: socket.socket) -> Iterator[tuple[socket.socket, list[Event]]]:
    """The front-end's end of a connection through a proxy to `back`, and what has passed."""
    events: list[Event] = []
    ours, theirs = socket.socketpair()
    proxy = Proxy(theirs, back, events.append)
    thread = threading.Thread(target=proxy.run, name="proxy")
    thread.start()
    try:
        with ours:
            yield ours, events
    finally:
        ours.close()
        thread.join(DEADLINE)
        proxy.stop()
        thread.join(DEADLINE)


@contextlib.contextmanager
def recorded_at(path: Path) -> Iterator[tuple[socket.socket, list[Event]]]:
    """The same to who listens on `path`."""
    with recorded(connect(path, wait=DEADLINE)) as both:
        yield both


def messages(events: list[Event]) -> list[Message]:
    """The messages among them."""
    return [event for event in events if isinstance(event, Message)]
