"""One session of a tracer: a proxy, and if wanted a follower of its rings, whose events take their turn in the proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

from .event import Event
from .proxy import Proxy
from .rings import RingFollower
from .verdict import Alter


@contextlib.contextmanager
def session(
    front: socket.socket,
    back: socket.socket,
    sink: Callable[[Event], None],
    *,
    connection: int = 0,
    alter: Alter | None = None,
    queues: bool = False,
) -> Iterator[Proxy]:
    """A proxy to be run within the block; with `queues` requests in rings are told to the sink, too, each in its place."""
    if not queues:
        yield Proxy(front, back, sink, connection=connection, alter=alter)
        return

    def tell(event: Event) -> None:
        proxy.tell(event)

    def has_room() -> bool:
        return proxy.has_room()

    follower = RingFollower(tell, connection, has_room)
    proxy = Proxy(front, back, sink, connection=connection, alter=alter, watch=follower)
    follower.start()
    try:
        yield proxy
    finally:
        follower.close()
