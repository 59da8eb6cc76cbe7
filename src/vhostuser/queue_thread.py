"""A queue thread of a back-end: from a kick to the work on a ring, and to sleep until the next one.

A thread with one compiled ring waits in compiled code, with the ring's lock held; it leaves that when it is woken.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from .errors import QueueBroken
from .kick_poller import MOST_EMPTY, KickPoller
from .ring_work import Post, RingWork
from .transport.loop import Waker
from .vring import Vring

log = logging.getLogger(__name__)


class QueueThread:
    """One thread and the rings that it works on. It begins with the first `start`.

    `spin` is the microseconds that it looks for the next request before it sleeps.
    """

    def __init__(self, name: str, vrings: Sequence[Vring], work: RingWork, spin: float) -> None:
        self._name, self._vrings, self._work = name, vrings, work
        self._spin = int(spin * 1000) if len(os.sched_getaffinity(0)) > 1 else 0
        self._waker = Waker()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._rounds: deque[threading.Event] = deque()

    def start(self) -> None:
        """Let it work on the rings that are active now."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self.wake()

    def wake(self) -> None:
        """Let the thread look anew at what it works and waits on."""
        for vring in self._vrings:
            if vring.handover:
                vring.handover.leave()
        self._waker.set()

    def look(self) -> threading.Event:
        """Let the thread look for requests in all its rings; what is set when it has done what there was."""
        done = threading.Event()
        self._rounds.append(done)
        self.wake()
        return done

    def close(self) -> None:
        """End the thread and close the eventfds; a thread with a request in progress does that itself."""
        self._closing = True
        self.wake()
        if self._thread is None:
            self._release()

    def join(self, deadline: float) -> threading.Thread | None:
        """Wait for its end until then (time.monotonic): the thread, if it has not ended."""
        if self._thread is None:
            return None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            return None
        log.warning("a request is still in progress; its thread ends with it")
        return self._thread

    def _release(self) -> None:
        self._waker.close()
        for vring in self._vrings:
            vring.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._serve()
        finally:
            self._release()

    def _serve(self) -> None:
        """Work on the rings that are active now, until something about them changes."""
        poller = KickPoller().watch(self._waker.fileno())
        kicks: dict[int, Vring] = {}
        rounds = [self._rounds.popleft() for _ in range(len(self._rounds))]
        active = [vring for vring in self._vrings if vring.active]
        for vring in active:
            if (fd := vring.kick_fd()) is not None:
                kicks[fd] = vring
                poller.watch(fd)
        self._work.begin()
        post = Post(self._waker.fileno(), self._spin) if len(kicks) == len(active) == 1 else None
        for vring in active:
            self._work.work(vring, None if rounds else post)
        for done in rounds:
            done.set()
        self._wait(poller, kicks, post)

    def _wait(self, poller: KickPoller, kicks: dict[int, Vring], post: Post | None) -> None:
        """Serve kicks until something about the rings has changed, or a device has completed what it kept."""
        while True:
            for fd in self._ready(poller):
                if fd == self._waker.fileno():
                    self._calm()
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
                self._work.work(vring, post)
                vring.empty_kicks = vring.empty_kicks + 1 if vring.base == before else 0
                if vring.empty_kicks > MOST_EMPTY:
                    poller.rest(fd)

    def _ready(self, poller: KickPoller) -> list[int]:
        """The fds that are ready soon, without sleep, or else whenever that is."""
        end = time.monotonic_ns() + self._spin
        while time.monotonic_ns() < end:
            if ready := poller.wait(0):
                return ready
        return poller.wait(None)

    def _calm(self) -> None:
        """It was woken, and looks at everything from now on."""
        self._waker.clear()
        for vring in self._vrings:
            if vring.handover:
                vring.handover.stay()
