"""The rings of a back-end as the thread that serves the front-end starts, changes and stops them.

Another thread, the queue thread, takes requests from those that are active, lets the device process them, and gives them
back. So the device may wait, for a disk or for the front-end's answer to SHMEM_MAP, while the front-end is still served. A
ring's lock is held while one of its requests is processed: to stop a ring is to take the lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from .counters import Counters
from .device import Device
from .errors import LocalProtocolError, QueueBroken
from .limited_log import LimitedLog
from .memory.guest import GuestMemory
from .protocol.payloads import VringAddr
from .queue_thread import QueueThread
from .ring_work import RingWork
from .virtio.chain import DescriptorChain
from .virtqueue import Place
from .vring import Vring

log = logging.getLogger(__name__)


class Rings:
    """All rings of a device and the thread that works on them.

    `ready` is called in that thread when a driver has taken the device, before its first request.
    """

    def __init__(self, device: Device, counters: Counters, ready: Callable[[], None], limited: LimitedLog) -> None:
        self.vrings = [Vring(index) for index in range(len(device.queue_sizes))]
        self.work = RingWork(device, counters, limited)
        name = f"vhost-user queues of {type(device).__name__}"
        self._thread = QueueThread(name, self.vrings, self.work, ready, limited)
        self._drain_timeout = device.drain_timeout

    def bind(self, place: Place, base: int | None) -> None:
        """Lay a stopped ring there; it goes on at `base`, or begins.

        QueueBroken if its parts are not there ("SET_VRING_ADDR"), or if there is no such base.
        """
        place.check()
        self.vrings[place.index].put(place, base)
        self.vrings[place.index].moved = None

    def move(self, rings: Sequence[tuple[int, int, VringAddr]], memory: GuestMemory) -> None:
        """Lay rings (index, size, addresses) over another memory table, those that are bound; all of them or none.

        Does not wait for a request in progress, which may be what caused this: its ring moves when it is done.
        """
        bound = [(row, self.vrings[row[0]].place) for row in rings]
        places = [Place(*row, memory, place.features, place.inflight) for row, place in bound if place is not None]
        for place in places:
            place.check()
        for place in places:
            self.vrings[place.index].moved = place
            self._lay_at_rest(self.vrings[place.index])

    def _lay_at_rest(self, vring: Vring) -> None:
        """Move a ring now if no request of it is in progress, so that it keeps no memory that was taken away."""
        if not vring.lock.acquire(blocking=False):
            self._thread.wake()
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
        if not vring.broken:
            vring.active = True
            self._thread.start()

    def kick(self, index: int, *, wait: bool) -> None:
        """Let the thread look into a ring that is active; with `wait` until it has, as long as a stop would wait."""
        if wait and self.vrings[index].active:
            self._thread.look().wait(self._drain_timeout)
        else:
            self._thread.wake()

    def announce(self) -> None:
        """Let the thread call `ready` before it does anything else."""
        self._thread.announce()

    def stop(self, index: int, *, record: bool = False) -> int:
        """Pause the ring and forget where it lies; the next available index.

        With `record` what the device keeps stays in the inflight area, for whoever starts the ring next.
        """
        self.pause(index, record=record)
        vring = self.vrings[index]
        queue, vring.queue, vring.moved, vring.broken = vring.queue, None, None, False
        vring.unsettle()
        return queue.base if queue else 0

    def pause(self, index: int, *, record: bool = False) -> None:
        """Take no more requests from the ring, and wait for what is in progress or kept by the device."""
        vring = self.vrings[index]
        vring.active = False
        if not self._drain(vring, time.monotonic() + self._drain_timeout, record=record):
            self._abandon(vring)
            log.warning("ring %d was stopped while a request of it was still in progress", index)
        self._thread.wake()

    def _drain(self, vring: Vring, deadline: float, *, record: bool) -> bool:
        """Whether everything was given back in time, or is recorded."""
        while vring.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                vring.completion.clear()
                self.work.collect(vring)
                if record:
                    vring.kept.clear()
                if not vring.kept:
                    return True
            finally:
                vring.lock.release()
            if not vring.completion.wait(max(0.0, deadline - time.monotonic())):
                return False
        return False

    def _abandon(self, vring: Vring) -> None:
        """Leave what is in progress to itself: what was done before it is shown to the driver, it never is."""
        with vring.books:
            vring.epoch += 1
            vring.kept.clear()
            if vring.queue is not None:
                try:
                    self.work.publish(vring, vring.queue)
                except QueueBroken as error:
                    log.warning("queue %d: %s", vring.index, error)

    def complete(self, queue: int, chain: DescriptorChain) -> None:
        """Have a kept request given back, from any thread; nothing if it was abandoned meanwhile."""
        self._of_device(queue).complete(chain)
        self._thread.wake()

    def resume(self, queue: int) -> None:
        """Have the queue looked at again, from any thread."""
        self._of_device(queue)
        self._thread.wake()

    def _of_device(self, queue: int) -> Vring:
        if not 0 <= queue < len(self.vrings):
            text = f"queue {queue} is none of the device's {len(self.vrings)}"
            raise LocalProtocolError(text, field="queue", value=queue, limit=len(self.vrings))
        return self.vrings[queue]

    def wake(self) -> None:
        """Let the thread look anew at what it waits on."""
        self._thread.wake()

    def close(self) -> None:
        """Stop all rings, end the thread, close the eventfds; a thread with a request in progress does that itself."""
        for vring in self.vrings:
            vring.active = False
            vring.epoch += 1
        self._thread.close()
