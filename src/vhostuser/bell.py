"""Calls and errors of rings as messages ("In-band notifications"), where no eventfd is set for them.

A thread of its own sends them, one at a time, and waits for each answer: the front-end may be waiting for a reply of this
back-end, or for a ring to stop, and answers only then. A ring that is called while its last call waits is called once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Literal

from .errors import Disconnected, VhostUserError
from .limited_log import LimitedLog
from .port import Port
from .protocol.numbers import BackendRequest
from .protocol.payloads import VringState

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the end of a connection waits for the message under way, whose channel has been shut down."""
REQUESTS: Final = {"call": BackendRequest.VRING_CALL, "err": BackendRequest.VRING_ERR}
Name = Literal["call", "err"]


class Bell:
    """What tells one front-end of its rings.

    The thread begins with the first message; `lost` is called in it, at most once, if one could not be delivered. Who never
    gave a channel is not told: QEMU acknowledges the feature, as every bit up to its last one, and knows nothing of it; it
    has eventfds for all that matters.
    """

    def __init__(self, port: Port, lost: Callable[[VhostUserError | OSError], None], limited: LimitedLog) -> None:
        self._port, self._lost, self._log = port, lost, limited
        self._due: dict[tuple[Name, int], None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def ring(self, name: Name, index: int) -> None:
        """Tell the front-end of ring `index`, from any thread, soon."""
        with self._changed:
            if self._closing:
                return
            self._due[name, index] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vhost-user calls in-band", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Tell it nothing more. The port has been shut down."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while due := self._next():
            try:
                self._send(*due)
            except (VhostUserError, OSError) as error:
                if self._port.opened:
                    self._end(error)
                    return
                self._log.warning(f"{REQUESTS[due[0]].name} of queue {due[1]} was not sent: {error}")

    def _next(self) -> tuple[Name, int] | None:
        with self._changed:
            while not self._due and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            due = next(iter(self._due))
            del self._due[due]
            return due

    def _send(self, name: Name, index: int) -> None:
        """Send one and wait for its answer; again if the front-end has given another channel meanwhile."""
        request = REQUESTS[name]
        while True:
            opened = self._port.opened
            try:
                with self._port.lock:
                    statuses = self._port.send_all([(request, VringState(index, 0), ())])
            except Disconnected:
                if not self._port.reopened(opened):
                    raise
            else:
                break
        if any(statuses):
            self._log.warning(f"{request.name} of queue {index} was refused by the front-end (status {statuses[0]:#x})")

    def _end(self, error: VhostUserError | OSError) -> None:
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self._lost(error)
