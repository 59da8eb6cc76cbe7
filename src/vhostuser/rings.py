"""The rings of a back-end as the thread that serves the front-end starts, changes and stops them.

Other threads, one or one a ring, take requests from those that are active, let the device process them, and give them
back. So the device may wait, for a disk or for the front-end's answer to SHMEM_MAP, while the front-end is still served. A
ring's lock is held while one of its requests is processed: to stop a ring is to take the lock. It is held as well while a
thread waits for a ring in compiled code, which it leaves when it is woken.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from .counters import Counters
from .device import Device
from .errors import LocalProtocolError, QueueBroken
from .limited_log import LimitedLog
from .memory.dirty_log import DirtyLog
from .memory.guest import GuestMemory
from .queue_thread import QueueThread
from .ring_work import RingWork
from .virtio.chain import DescriptorChain
from .virtqueue import Place
from .vring import Vring

log = logging.getLogger(__name__)
CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the end of a connection waits for the requests in progress."""
ASKING_TIMEOUT: Final = 1.0
"""Seconds that a stop waits for a request that waits for the front-end."""


class Rings:
    """All rings of a device and the threads that work on them.

    `ready` is called in one of these when a driver has taken the device, before its first request. `asking` says whether
    a request of the device to the front-end is under way.
    """

    def __init__(
        self,
        device: Device,
        counters: Counters,
        ready: Callable[[], None],
        limited: LimitedLog,
        asking: Callable[[], bool] = lambda: False,
    ) -> None:
        self.vrings = [Vring(index) for index in range(len(device.queue_sizes))]
        self.work = RingWork(device, counters, ready, limited)
        name = f"vhost-user queues of {type(device).__name__}"
        groups = [[vring] for vring in self.vrings] if device.queue_threads else [self.vrings]
        self._threads: list[QueueThread] = []
        self._device, self._asking = device, asking
        try:
            for group in groups:
                self._threads.append(QueueThread(name, group, self.work, device.spin))
        except BaseException:
            self.close()
            raise

    def bind(self, place: Place, base: int | None) -> None:
        """Lay a stopped ring there; it goes on at `base`, or begins.

        QueueBroken if its parts are not there ("SET_VRING_ADDR"), or if there is no such base.
        """
        place.check()
        self.vrings[place.index].put(place, base)
        self.vrings[place.index].moved = None

    def move(self, memory: GuestMemory) -> None:
        """Lay the rings that are bound over another memory table, each at its addresses; all of them or none.

        Does not wait for a request in progress, which may be what caused this: its ring moves when it is done.
        """
        places = [replace(place, memory=memory) for vring in self.vrings if (place := vring.place)]
        for place in places:
            place.check()
        for place in places:
            self.vrings[place.index].moved = place
            self._lay_at_rest(self.vrings[place.index])

    def _lay_at_rest(self, vring: Vring) -> None:
        """Move a ring now if no request of it is in progress, so that it keeps no memory that was taken away."""
        if not vring.lock.acquire(blocking=False):
            self._thread_of(vring.index).wake()
            return
        try:
            vring.lay()
        except QueueBroken as error:
            self.work.break_off(vring, error)
        finally:
            vring.lock.release()

    def start(self, index: int) -> None:
        """Let the thread take requests from the ring; what waits in it already is taken without a kick."""
        vring = self.vrings[index]
        if not vring.broken and not vring.active:
            vring.active = True
            try:
                self._thread_of(index).start()
            except BaseException:
                vring.active = False
                raise

    def _thread_of(self, index: int) -> QueueThread:
        return self._threads[min(index, len(self._threads) - 1)]

    def kick(self, index: int, *, wait: bool) -> None:
        """Let the thread look into a ring that is active; with `wait` until it has, as long as a stop would wait."""
        if wait and self.vrings[index].active:
            self._wait(self._thread_of(index).look().wait, self._patience())
        else:
            self._thread_of(index).wake()

    def announce(self) -> None:
        """Have `ready` called before anything else is done in any thread."""
        self.work.announce()
        self.wake()

    def log_to(self, dirty: DirtyLog | None) -> None:
        """Log writes to guest memory from now on, or no more. Compiled code, which logs none, has left when this returns.

        What was given back before is shown before, since it was not logged.
        """
        if not dirty or self.work.log:
            self.work.log = dirty
            return
        with contextlib.ExitStack() as held:
            for vring in self.vrings:
                held.enter_context(vring.books)
                if vring.queue is not None:
                    with contextlib.suppress(QueueBroken):  # the thread that works on it will say so
                        self.work.publish(vring, vring.queue)
            self.work.log = dirty
        if self._device.compiled():
            for vring in self.vrings:
                if vring.active:
                    self._interrupt(vring)

    def _interrupt(self, vring: Vring) -> None:
        """Have the thread of an active ring leave compiled code, and come back.

        A request that takes too long there is done once more; one that Python does takes as long as it takes.
        """
        vring.active = False
        self._thread_of(vring.index).wake()
        if self._rests(vring, self._patience()):
            vring.lock.release()
        elif vring.in_compiled:
            self._abandon(vring)
        self.start(vring.index)

    def stop_all(self) -> None:
        """Stop every ring, all of them in the time of one."""
        deadline = self._patience()
        for vring in self.vrings:
            vring.active = False
        self.wake()
        for vring in self.vrings:
            self.stop(vring.index, deadline=deadline)

    def stop(self, index: int, *, record: bool = False, deadline: float | None = None) -> int:
        """Pause the ring and forget where it lies; the next available index.

        With `record` what the device keeps stays in the inflight area, for whoever starts the ring next.
        """
        self._pause(index, record=record, deadline=deadline)
        vring = self.vrings[index]
        base = vring.left_base
        vring.queue, vring.moved, vring.broken = None, None, False
        vring.unsettle()
        return base

    def is_tracked(self, index: int) -> bool:
        """What is in progress in the ring is in an inflight area."""
        place = self.vrings[index].place
        return place is not None and place.fields is not None

    def rest(self, index: int) -> None:
        """Take no more requests from the ring for now, and wait for the one in progress; what the device keeps it keeps."""
        vring = self.vrings[index]
        vring.active = False
        self._thread_of(index).wake()
        if self._rests(vring, self._patience()):
            vring.lock.release()

    def _pause(self, index: int, *, record: bool, deadline: float | None) -> None:
        """Take no more requests from the ring, and wait for what is in progress or kept by the device."""
        if deadline is None:
            deadline = self._patience()
        vring = self.vrings[index]
        vring.active = False
        self._thread_of(index).wake()
        if not self._drain(vring, deadline, record=record):
            self._abandon(vring)
            log.warning("ring %d was stopped while a request of it was still in progress", index)

    def _drain(self, vring: Vring, deadline: float, *, record: bool) -> bool:
        """Whether everything was given back in time, or is recorded."""
        while self._rests(vring, deadline):
            try:
                vring.completion.clear()
                self.work.collect(vring)
                if record:
                    vring.kept.clear()
                if not vring.kept:
                    return True
            finally:
                vring.lock.release()
            if not self._wait(vring.completion.wait, deadline):
                return False
        return False

    def _patience(self) -> float:
        """Until when a request in progress is waited for."""
        return time.monotonic() + self._device.drain_timeout

    def _rests(self, vring: Vring, deadline: float) -> bool:
        """Whether the ring's lock is held now: no thread works on it."""
        return self._wait(lambda patience: vring.lock.acquire(timeout=patience), deadline)

    def _wait(self, waits: Callable[[float], bool], deadline: float) -> bool:
        """Whether it comes in time. Not waited for, but for a second, is what the front-end has to answer.

        QEMU 11.1 answers no SHMEM_MAP while it waits for a stop.
        """
        while True:
            left = max(0.0, deadline - time.monotonic())
            if waits(min(left, ASKING_TIMEOUT)):
                return True
            if left <= ASKING_TIMEOUT or self._asking():
                return False

    def _abandon(self, vring: Vring) -> None:
        """Leave what is in progress to itself: what was done before it is shown to the driver, it never is."""
        with vring.books:
            vring.abandon()
            vring.kept.clear()
            vring.pushed += 1  # perhaps: compiled code does not count what it gives back
            if vring.queue is not None:
                try:
                    self.work.publish(vring, vring.queue)
                except QueueBroken as error:
                    log.warning("queue %d: %s", vring.index, error)

    def complete(self, queue: int, chain: DescriptorChain) -> None:
        """Have a kept request given back, from any thread; nothing if it was abandoned meanwhile."""
        self._of_device(queue).complete(chain)
        self._thread_of(queue).wake()

    def resume(self, queue: int) -> None:
        """Have the queue looked at again, from any thread."""
        self._of_device(queue)
        self._thread_of(queue).wake()

    def _of_device(self, queue: int) -> Vring:
        if not 0 <= queue < len(self.vrings):
            text = f"queue {queue} is none of the device's {len(self.vrings)}"
            raise LocalProtocolError(text, field="queue", value=queue, limit=len(self.vrings))
        return self.vrings[queue]

    def wake(self) -> None:
        """Let the threads look anew at what they work and wait on."""
        for thread in self._threads:
            thread.wake()

    def close(self) -> list[threading.Thread]:
        """Stop all rings, end the threads, close the eventfds; a thread with a request in progress does that itself.

        Those threads are what is left.
        """
        for vring in self.vrings:
            vring.active = False
            vring.abandon()
        for thread in self._threads:
            thread.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT
        return [left for thread in self._threads if (left := thread.join(deadline))]
