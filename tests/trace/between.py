"""A proxy in a thread between two ends, and the testing kit with one between its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.testing import DEADLINE, Wire, pair, raw_backend
from vhostuser.trace.event import Event, Message, Remark, Remarkable
from vhostuser.trace.proxy import Proxy
from vhostuser.trace.verdict import Alter, Watch


class Between:
    """A proxy that runs in a thread: `front` is where the front-end is, `back` where the back-end is."""

    def __init__(self, alter: Alter | None = None, watch: Watch | None = None, *, started: bool = True) -> None:
        front, to_front = socket.socketpair()
        back, to_back = socket.socketpair()
        self.front, self.back = Wire(front), Wire(back)
        self.events: list[Event] = []
        self.proxy = Proxy(to_front, to_back, self._take, alter=alter, watch=watch)
        self._marks: dict[str, threading.Event] = {}
        self._thread = threading.Thread(target=self.proxy.run, name="proxy", daemon=True)
        if started:
            self.start()

    def start(self) -> None:
        """Begin to pass messages on."""
        self._thread.start()

    def _take(self, event: Event) -> None:
        if isinstance(event, Remark) and event.text in self._marks:
            self._marks.pop(event.text).set()
        else:
            self.events.append(event)

    def settle(self) -> None:
        """Wait until all that was sent so far has passed, and was told."""
        for name in ("first mark", "second mark"):
            self._marks[name] = mark = threading.Event()
            self.proxy.tell(Remark(0, 0, Remarkable.NOTE, name))
            if not mark.wait(DEADLINE) and self._thread.is_alive():
                raise AssertionError("the proxy does not come to rest")

    def join(self) -> None:
        """Wait for the proxy's end."""
        self._thread.join(DEADLINE)
        if self._thread.is_alive():
            raise AssertionError("the proxy did not end")

    @property
    def messages(self) -> list[Message]:
        """The messages that were told so far."""
        return [event for event in self.events if isinstance(event, Message)]

    def remarks(self, about: Remarkable) -> list[str]:
        """What was remarked about this so far."""
        return [event.text for event in self.events if isinstance(event, Remark) and event.about is about]

    def close(self) -> None:
        """Let both ends go, and wait for the proxy's end."""
        self.front.close()
        self.back.close()
        if self._thread.ident:
            self.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Sockets:
    """The module `socket`, whose pairs have a proxy between them."""

    def __init__(self, *, front_first: bool) -> None:
        self.made: list[Between] = []
        self._front_first = front_first

    def __getattr__(self, name: str) -> object:
        return getattr(socket, name)

    def socketpair(self) -> tuple[socket.socket, socket.socket]:
        """Two sockets that are connected through a proxy."""
        between = Between()
        self.made.append(between)
        ends = (between.front.socket, between.back.socket)
        return ends if self._front_first else ends[::-1]


@contextmanager
def kit_through_proxies() -> Iterator[list[Between]]:
    """Within the block every connection that the testing kit makes goes through a proxy; all of them, as they are made."""
    served, raw = _Sockets(front_first=True), _Sockets(front_first=False)
    made = served.made = raw.made

    def serve(frontend: Frontend) -> None:
        """What was sent to the front-end has to pass before it can be answered, in this thread."""
        for between in made:
            between.settle()
        try:
            frontend.serve(0)
        except Disconnected:
            return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "socket", served)
        patch.setattr(raw_backend, "socket", raw)
        patch.setattr(raw_backend, "_serve_waiting", serve)
        yield made
    for between in made:
        between.join()
