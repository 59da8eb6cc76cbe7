"""The proxy of the demonstration: between two sockets, in a thread, with a line for each message."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Self

from ..trace.conversation import Conversation, Exchange
from ..trace.event import Event, Message
from ..trace.lines import Lines
from ..trace.proxy import Proxy


class Between:
    """Sits between two sockets, `front_end` and `back_end`, of which each belongs to one of the two.

    `show` is called, in the proxy's thread, with one line a request and its answer, before what completes it goes on: so
    lines stand where they belong among those of the two sides.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.events: list[Event] = []
        """All that passed, once the proxy has ended."""
        self.requests = 0
        """Requests that came, on both channels."""
        self._show = show
        self._conversation, self._lines = Conversation(), Lines(colour=False)
        self.front_end, front = socket.socketpair()
        self.back_end, back = socket.socketpair()
        self._proxy = Proxy(front, back, self.events.append, alter=self._see)
        self._thread = threading.Thread(target=self._proxy.run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for sock in (self.front_end, self.back_end):
            sock.close()
        self._proxy.stop()
        self._thread.join()

    def _see(self, message: Message, fds: Sequence[int]) -> None:
        """Nothing is done to a message; it is shown."""
        self.requests += message.asks
        for item in self._conversation.take(message):
            if isinstance(item, Exchange):
                self._show(self._lines.line(item) or "")
