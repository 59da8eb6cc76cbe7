"""The queue thread of a back-end: from a kick to the work on a ring, and to sleep until the next one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from .errors import QueueBroken, VhostUserError
from .faults import device_faults
from .kick_poller import MOST_EMPTY, KickPoller
from .limited_log import LimitedLog
from .ring_work import RingWork
from .transport.loop import Waker
from .vring import Vring

log = logging.getLogger(__name__)
CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the end of a connection waits for the request in progress."""


class QueueThread:
    """One thread and the rings that it works on. It begins with the first `start`.

    `ready` is called in it when a driver has taken the device, before its first request.
    """

    def __init__(
        self, name: str, vrings: Sequence[Vring], work: RingWork, ready: Callable[[], None], limited: LimitedLog
    ) -> None:
        self._name, self._vrings, self._work, self._ready, self._log = name, vrings, work, ready, limited
        self._waker = Waker()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ready_due = False
        self._rounds: deque[threading.Event] = deque()

    def start(self) -> None:
        """Let it work on the rings that are active now."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._waker.set()

    def announce(self) -> None:
        """Let the thread call `ready` before it does anything else."""
        self._ready_due = True
        self._waker.set()

    def wake(self) -> None:
        """Let the thread look anew at what it waits on."""
        self._waker.set()

    def look(self) -> threading.Event:
        """Let the thread look for requests in all its rings; what is set when it has done what there was."""
        done = threading.Event()
        self._rounds.append(done)
        self._waker.set()
        return done

    def close(self) -> None:
        """End the thread and close the eventfds; a thread with a request in progress does that itself."""
        self._closing = True
        self._waker.set()
        if self._thread is None:
            self._release()
            return
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            log.warning("a request is still in progress; its thread ends with it")

    def _release(self) -> None:
        self._waker.close()
        for vring in self._vrings:
            vring.close()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._release()

    def _serve(self) -> None:
        while not self._closing:
            poller = KickPoller().watch(self._waker.fileno())
            kicks: dict[int, Vring] = {}
            rounds = [self._rounds.popleft() for _ in range(len(self._rounds))]
            active = [vring for vring in self._vrings if vring.active]
            for vring in active:
                if (fd := vring.kick_fd()) is not None:
                    kicks[fd] = vring
                    poller.watch(fd)
            self._call_ready()
            for vring in active:
                self._work.work(vring)
            for done in rounds:
                done.set()
            self._wait(poller, kicks)

    def _call_ready(self) -> None:
        if self._ready_due:
            self._ready_due = False
            try:
                self._ready()
            except VhostUserError as error:
                self._log.warning(f"the start of the device failed: {error}")
            except device_faults():
                self._log.exception("the start of the device failed")

    def _wait(self, poller: KickPoller, kicks: dict[int, Vring]) -> None:
        """Serve kicks until something about the rings has changed, or a device has completed what it kept."""
        while True:
            for fd in poller.wait(None):
                if fd == self._waker.fileno():
                    self._waker.clear()
                    return
                vring = kicks[fd]
                if not vring.active:
                    return
                before = vring.base
                try:
                    vring.take_kick(fd)
                except QueueBroken as error:
                    self._work.break_off(vring, error)
                    return
                self._work.work(vring)
                vring.empty_kicks = vring.empty_kicks + 1 if vring.base == before else 0
                if vring.empty_kicks > MOST_EMPTY:
                    poller.rest(fd)
