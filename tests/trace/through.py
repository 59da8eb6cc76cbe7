"""Two peers joined by a relay that shows each message of the main channel, with its fds, to somebody."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

from tests.drivers.devices import Disk
from vhostuser import DescriptorChain, Device, Frontend
from vhostuser.errors import Disconnected
from vhostuser.frontend import FrontendOptions
from vhostuser.protocol.numbers import HEADER_SIZE
from vhostuser.protocol.payloads import HEADER
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE, RawFrontend, Served, wait_until
from vhostuser.trace.event import Event, Message, Offered, Remark, Used
from vhostuser.trace.rings import RingFollower
from vhostuser.transport.fds import close_all
from vhostuser.transport.socket import receive_some, send_some

Passed = Callable[[Message, Sequence[int]], None]


class Relay:
    """Passes whole messages on between two sockets, and tells `passed` of each once it has been sent."""

    def __init__(self, front: socket.socket, back: socket.socket, passed: Passed) -> None:
        self._front, self._back, self._passed = front, back, passed
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def close(self) -> None:
        for sock in (self._front, self._back):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        pairs = {self._front: (self._back, Role.FRONTEND), self._back: (self._front, Role.BACKEND)}
        with contextlib.suppress(Disconnected):
            while True:
                for sock in select.select(list(pairs), [], [])[0]:
                    if not self._pass_on(sock, *pairs[sock]):
                        self._front.shutdown(socket.SHUT_RDWR)
                        self._back.shutdown(socket.SHUT_RDWR)
                        return

    def _pass_on(self, sock: socket.socket, other: socket.socket, sender: Role) -> bool:
        data, fds = receive_some(sock, HEADER_SIZE, socket.MSG_WAITALL)
        try:
            if size := HEADER.unpack(data)[2] if data else 0:
                rest, more = receive_some(sock, size, socket.MSG_WAITALL)
                data, fds = data + rest, fds + more
            numbers = [fd.fileno() for fd in fds]
            if data:
                if send_some(other, data, numbers) != len(data):
                    raise RuntimeError("a socket that blocks took a part of a message")
                self._passed(Message(time.time_ns(), 0, Channel.FRONTEND, sender, data), numbers)
        finally:
            close_all(fds)
        return bool(data)


class Watched:
    """What a follower saw: `events` in order, by kind as well."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.follower = RingFollower(self.events.append, 0)

    @property
    def offered(self) -> list[Offered]:
        return [event for event in self.events if isinstance(event, Offered)]

    @property
    def used(self) -> list[Used]:
        return [event for event in self.events if isinstance(event, Used)]

    @property
    def remarks(self) -> list[str]:
        return [f"{event.about.value}: {event.text}" for event in self.events if isinstance(event, Remark)]

    def until(self, count: int) -> None:
        """Wait until so many requests were seen to be given back, or lost."""
        wait_until(lambda: len(self.used) >= count, f"{count} requests given back")


@contextlib.contextmanager
def watched(front: socket.socket, back: socket.socket) -> Iterator[Watched]:
    """A relay between two sockets with a follower that is at work."""
    seen = Watched()
    seen.follower.start()
    relay = Relay(front, back, seen.follower.passed)
    try:
        yield seen
    finally:
        relay.close()
        seen.follower.close()


@contextlib.contextmanager
def followed(device: Device, **options: Unpack[FrontendOptions]) -> Iterator[tuple[Frontend, Watched]]:
    """A Frontend and a Backend with a follower between them."""
    served, (ours, theirs) = Served(device), socket.socketpair()
    try:
        with watched(theirs, served.connected()) as seen:
            if isinstance(device, Observed):
                device.seen = seen
            with Frontend(ours, **options) as frontend:
                yield frontend, seen
    finally:
        served.stop()


@contextlib.contextmanager
def provoked(device: Device) -> Iterator[tuple[RawFrontend, Watched]]:
    """A raw front-end and a Backend with a follower between them."""
    served, (ours, theirs) = Served(device), socket.socketpair()
    try:
        with watched(theirs, served.connected()) as seen, RawFrontend(ours) as raw:
            yield raw, seen
    finally:
        served.stop()


class Observed(Disk):
    """A disk that begins with a request only once the follower has seen it, so that none comes and goes unseen."""

    seen: Watched
    taken = 0

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self.taken += 1
        wait_until(lambda: len(self.seen.offered) >= self.taken, f"request {self.taken} seen")
        super().process(queue, chain)
