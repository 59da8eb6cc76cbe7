"""Guest memory and rings, followed from outside: requests and completions as events, while the connection goes on.

Nothing of the guest's is written, and no eventfd is waited for or read: who reads one takes a wake-up from the device. So
the rings are looked at again and again, often while something happens and seldom while nothing does. What comes and goes
between two looks is counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..limited_log import printable
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.rules import Channel
from ..transport.fds import OwnedFd, close_all
from .clock import now
from .event import Event, Message, Remark, Remarkable
from .ring_states import RingStates

log = logging.getLogger(__name__)
QUICKEST: Final = 0.0001
SLOWEST: Final = 0.002
"""Seconds between two looks: while there is something to see, and after a while without."""
SLOWER: Final = 1.1
"""How much longer a pause is than the one before, while nothing is seen."""
MOST_PENDING: Final = 64
"""Messages that may wait for the thread; the next one is applied by whoever brings it."""
_WITH_MEMORY: Final = (Q.SET_MEM_TABLE, Q.ADD_MEM_REG)


class RingFollower:
    """Follows the rings of one connection. `start` begins it; `close` takes a last look and lets go of everything.

    `passed` is told of every message; `sink` gets what is seen, mostly in the follower's own thread, which looks at nothing
    while the sink has no `room`. What goes wrong here ends the following, and nothing else.
    """

    def __init__(self, sink: Callable[[Event], None], connection: int = 0, room: Callable[[], bool] = lambda: True) -> None:
        self._sink, self._connection, self._room = sink, connection, room
        self._states = RingStates(sink, connection)
        self._pending: deque[tuple[Message, list[OwnedFd]]] = deque()
        self._lock = threading.Lock()
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="ring follower", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def passed(self, message: Message, fds: Sequence[int]) -> None:
        """A message passes, with fds that are open during this call. Quick, but where a ring stops: it is looked at then."""
        if self._ended or message.channel is not Channel.FRONTEND or not message.whole or not message.delivered:
            return
        if message.request not in self._states.requests:
            return
        with self._guarded():
            self._pending.append((message, self._kept(message, fds)))
            stops = message.request == Q.GET_VRING_BASE and not message.asks
            if stops or len(self._pending) > MOST_PENDING:
                self.look()
        self._wake.set()

    def _kept(self, message: Message, fds: Sequence[int]) -> list[OwnedFd]:
        """Copies of the fds of guest memory."""
        kept: list[OwnedFd] = []
        try:
            if message.asks and message.request in _WITH_MEMORY:
                kept.extend(OwnedFd(os.dup(fd)) for fd in fds)
        except OSError as error:
            log.warning("guest memory can't be followed: %s", error)
        return kept

    def look(self) -> bool:
        """Apply what passed and look at every ring, now; whether there was something to see."""
        with self._lock:
            while self._pending:
                message, fds = self._pending.popleft()
                try:
                    self._states.apply(message, fds)
                finally:
                    close_all(fds)
            return self._states.look()

    def close(self) -> None:
        """Look once more, end the thread and let go of guest memory."""
        failed, self._ended = self._ended, True
        self._wake.set()
        if self._thread.ident:
            self._thread.join()
        if not failed:
            with self._guarded():
                self.look()
                self._states.finish()
        with self._lock:
            for _, fds in self._pending:
                close_all(fds)
            self._pending.clear()
            self._states.close()

    def _run(self) -> None:
        pause = QUICKEST
        with self._guarded():
            while not self._ended:
                seen = self._room() and self.look()
                pause = QUICKEST if seen else min(pause * SLOWER, SLOWEST)
                if self._wake.wait(pause if self._states.following or self._pending else None):
                    self._wake.clear()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong within ends the following, and is said once."""
        try:
            yield
        except Exception as error:
            self._ended = True
            text = printable(f"the rings are not followed any more: {type(error).__name__}: {error}")
            log.error(text)
            self._sink(Remark(now(), self._connection, Remarkable.LOST, text))
