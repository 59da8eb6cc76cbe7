"""The queue thread of a back-end: from a kick to a call.

The thread that serves the front-end starts, changes and stops rings; this one takes requests from those that are active,
lets the device process them, and gives them back. So the device may wait, for a disk or for the front-end's answer to
SHMEM_MAP, while the front-end is still served. A ring's lock is held while one of its requests is processed: to stop a ring
is to take the lock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .counters import Counters
from .device import Device
from .errors import MemoryFault, QueueBroken, VhostUserError
from .limited_log import LimitedLog
from .memory.dirty_log import DirtyLog
from .memory.fragile import pour_back
from .memory.guest import GuestMemory
from .protocol.payloads import VringAddr
from .transport.loop import Poller, Waker
from .virtio.chain import DescriptorChain
from .virtqueue import DeviceQueue, Place
from .vring import Vring

log = logging.getLogger(__name__)
CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the end of a connection waits for the request in progress."""
LONGEST_WRITTEN: Final = (1 << 32) - 1
"""What a used entry can say."""


class Rings:
    """All rings of a device and the thread that works on them.

    `ready` is called in that thread when a driver has taken the device, before its first request.
    """

    def __init__(self, device: Device, counters: Counters, ready: Callable[[], None], limited: LimitedLog) -> None:
        self.vrings = [Vring(index) for index in range(len(device.queue_sizes))]
        self._device, self._counters, self._ready, self._log = device, counters, ready, limited
        self._waker = Waker()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ready_due = False
        self.log: DirtyLog | None = None
        """Where writes to guest memory are logged, while they are."""

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
        places = [Place(*row, memory, place.features) for row, place in bound if place is not None]
        for place in places:
            place.check()
        for place in places:
            self.vrings[place.index].moved = place
            self._lay_at_rest(self.vrings[place.index])

    def _lay_at_rest(self, vring: Vring) -> None:
        """Move a ring now if no request of it is in progress, so that it keeps no memory that was taken away."""
        if not vring.lock.acquire(blocking=False):
            self._waker.set()
            return
        try:
            vring.lay()
        except QueueBroken as error:
            self._break(vring, error)
        finally:
            vring.lock.release()

    def start(self, index: int) -> None:
        """Let the thread take requests from the ring; what waits in it already is taken without a kick."""
        vring = self.vrings[index]
        if vring.broken:
            return
        if self._thread is None:
            name = f"vhost-user queues of {type(self._device).__name__}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._thread = thread
        vring.active = True
        self._waker.set()

    def announce(self) -> None:
        """Let the thread call `ready` before it does anything else."""
        self._ready_due = True
        self._waker.set()

    def stop(self, index: int) -> int:
        """Pause the ring and forget where it lies; the next available index."""
        self.pause(index)
        vring = self.vrings[index]
        queue, vring.queue, vring.moved, vring.broken = vring.queue, None, None, False
        vring.unsettle()
        return queue.base if queue else 0

    def pause(self, index: int) -> None:
        """Take no more requests from the ring, and wait for the one in progress."""
        vring = self.vrings[index]
        vring.active = False
        if vring.lock.acquire(timeout=self._device.drain_timeout):
            vring.lock.release()
        else:
            self._abandon(vring)
            log.warning("ring %d was stopped while a request of it was still in progress", index)
        self._waker.set()

    def _abandon(self, vring: Vring) -> None:
        """Leave a request in progress to itself: what was done before it is shown to the driver, it never is."""
        with vring.books:
            vring.epoch += 1
            if vring.queue is not None:
                try:
                    self._publish(vring, vring.queue)
                except QueueBroken as error:
                    self._log.warning(f"queue {vring.index}: {error}")

    def wake(self) -> None:
        """Let the thread look anew at what it waits on."""
        self._waker.set()

    def close(self) -> None:
        """Stop all rings, end the thread, close the eventfds; a thread with a request in progress does that itself."""
        for vring in self.vrings:
            vring.active = False
            vring.epoch += 1
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
        for vring in self.vrings:
            vring.close()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._release()

    def _serve(self) -> None:
        while not self._closing:
            poller = Poller().watch(self._waker.fileno())
            kicks: dict[int, Vring] = {}
            for vring in self.vrings:
                if vring.active and (fd := vring.kick_fd()) is not None:
                    kicks[fd] = vring
                    poller.watch(fd)
            self._call_ready()
            for vring in kicks.values():
                self._work(vring)
            self._wait(poller, kicks)

    def _call_ready(self) -> None:
        if self._ready_due:
            self._ready_due = False
            try:
                self._ready()
            except VhostUserError as error:
                self._log.warning(f"the start of the device failed: {error}")
            except Exception:
                self._log.exception(f"{type(self._device).__name__}.driver_ready failed")

    def _wait(self, poller: Poller, kicks: dict[int, Vring]) -> None:
        """Serve kicks until something about the rings has changed."""
        while True:
            for fd in poller.wait(None):
                if fd == self._waker.fileno():
                    self._waker.clear()
                    return
                vring = kicks[fd]
                if not vring.active:
                    return
                try:
                    vring.take_kick(fd)
                except QueueBroken as error:
                    self._break(vring, error)
                    return
                self._work(vring)

    def _work(self, vring: Vring) -> None:
        """Process all that waits in a ring, publishing once a batch."""
        while vring.active and not self._closing:
            with vring.lock:
                queue = vring.queue
                try:
                    if (queue := vring.settle()) is None:
                        return
                    more = self._batch(vring, queue)
                except QueueBroken as error:
                    if not vring.settled or vring.queue is not queue:
                        continue
                    self._break(vring, error)
                    return
                except Exception as error:
                    if vring.queue is not queue:
                        continue
                    self._log.exception(f"queue {vring.index} failed")
                    self._break(vring, QueueBroken(f"{type(error).__name__}: {error}"))
                    return
            if not more:
                return

    def _batch(self, vring: Vring, queue: DeviceQueue) -> bool:
        """Process what waits, a queue's length at most, and publish it in one go; whether there was anything."""
        epoch, chain = vring.epoch, None
        try:
            for _ in range(queue.size):
                if vring.epoch != epoch or not vring.active or not vring.settled or (chain := queue.pop()) is None:
                    break
                self._process(vring.index, chain)
                self._give_back(vring, queue, chain, epoch)
        finally:
            with vring.books:
                if vring.epoch == epoch:
                    self._publish(vring, queue)
        return chain is not None or not vring.settled

    def _give_back(self, vring: Vring, queue: DeviceQueue, chain: DescriptorChain, epoch: int) -> None:
        """Give a request back, unless a stop has abandoned it."""
        with vring.books:
            if vring.epoch == epoch and vring.place:
                self._settle_writes(vring.place.memory, chain)
                chain.written = min(chain.written, LONGEST_WRITTEN)
                queue.push(chain)
                vring.pushed += 1

    def _settle_writes(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        """What the device wrote for a request reaches fragile memory and the dirty log, before the driver is told."""
        if memory.fragile:
            with _breaking():
                pour_back(chain.writable)
        if log := self.log:
            with _breaking():
                log.mark_views(memory, chain.writable)

    def _publish(self, vring: Vring, queue: DeviceQueue) -> None:
        """Show the driver what was pushed, mark where that was written, and notify it if it wants that."""
        if not vring.pushed:
            return
        vring.pushed, notify = 0, queue.publish()
        if (log := self.log) and (place := vring.place) and vring.used_log is not None:
            with _breaking():
                log.mark(vring.used_log, place.sizes[2])
                log.mark_views(place.memory, place.written_views())
        if notify:
            vring.signal("call")

    def _process(self, index: int, chain: DescriptorChain) -> None:
        try:
            self._device.process(index, chain)
        except VhostUserError as error:
            self._log.warning(f"a request of queue {index} failed: {error}")
        except Exception:
            self._log.exception(f"{type(self._device).__name__}.process failed for a request of queue {index}")

    def _break(self, vring: Vring, error: QueueBroken) -> None:
        """This queue stops until it is set up again; the others live."""
        vring.active, vring.broken = False, True
        self._counters.broken += 1
        self._log.warning(f"queue {vring.index} is broken: {error}")
        vring.signal("err")


@contextlib.contextmanager
def _breaking() -> Iterator[None]:
    """Within it, a write that can't be made or logged breaks the queue."""
    try:
        yield
    except MemoryFault as error:
        raise QueueBroken(f"a write is lost: {error}") from None
