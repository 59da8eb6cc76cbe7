"""The queue thread of a back-end: from a kick to a call.

The thread that serves the front-end starts, changes and stops rings; this one takes requests from those that are active,
lets the device process them, and gives them back. So the device may wait, for a disk or for the front-end's answer to
SHMEM_MAP, while the front-end is still served. A ring's lock is held while one of its requests is processed: to stop a ring
is to take the lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from .counters import Counters
from .device import Device
from .errors import MemoryFault, QueueBroken, VhostUserError
from .limited_log import LimitedLog
from .memory.dirty_log import DirtyLog
from .memory.fragile import FragileQueue, RingPart
from .memory.guest import GuestMemory
from .protocol.payloads import VringAddr
from .transport.fds import OwnedFd
from .transport.loop import Poller, Waker, drain
from .transport.socket import wait
from .virtio.chain import DescriptorChain
from .virtio.split import SplitQueue, ring_sizes

log = logging.getLogger(__name__)
Part = TypeVar("Part", memoryview, RingPart)
DRAIN_TIMEOUT: Final = 1.0
"""How long a stop waits for the request in progress. QEMU answers nothing while it waits for GET_VRING_BASE."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a ring lies in a memory table ("SET_VRING_ADDR")."""

    index: int
    size: int
    addresses: VringAddr
    memory: GuestMemory

    def check(self) -> None:
        """QueueBroken if its parts are not there, or not writable where they must be."""
        if self._parts(self.memory.ring_part)[2].readonly:
            raise QueueBroken(f"the used ring of ring {self.index} is in read-only memory")

    def queue(self, base: int) -> SplitQueue:
        """The ring laid there. QueueBroken if the memory is gone by now."""
        if self.memory.fragile:
            return FragileQueue(self.size, *self._parts(self.memory.ring_part), self.memory, base=base)
        return SplitQueue(self.size, *self._parts(self.memory.at_user), self.memory, base=base)

    def _parts(self, look_up: Callable[[int, int], Part]) -> tuple[Part, Part, Part]:
        sizes, at = ring_sizes(self.size), self.addresses
        try:
            return look_up(at.descriptor, sizes[0]), look_up(at.available, sizes[1]), look_up(at.used, sizes[2])
        except MemoryFault as error:
            raise QueueBroken(f"ring {self.index} is outside guest memory: {error}") from None


@dataclass(slots=True, eq=False)
class Vring:
    """One ring as the back-end runs it."""

    index: int
    queue: SplitQueue | None = None
    memory: GuestMemory = field(default_factory=GuestMemory)
    """The table in which the queue lies."""
    moved: Place | None = None
    """Where the queue lies by a newer memory table; it goes there between two batches, when all is published."""
    active: bool = False
    broken: bool = False
    """The driver left nonsense in it: it rests until it is stopped and set up again."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a request is processed."""
    epoch: int = 0
    """Changes when a stop did not wait for the request in progress, which then may not be given back."""
    used_log: int | None = None
    """Where in guest memory the used ring lies for the dirty log, if writes to it are to be logged."""
    _settled: Place | None = None
    _files: dict[str, OwnedFd] = field(default_factory=dict)
    _files_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def settled(self) -> bool:
        """The queue lies where the newest memory table has it."""
        return self.moved is None or self.moved is self._settled

    def settle(self) -> SplitQueue | None:
        """The queue, laid where it is now, if the ring is active. The lock must be held. QueueBroken as `lay` raises it."""
        if not self.active:
            return None
        self.lay()
        return self.queue

    def lay(self) -> None:
        """Lay the queue where it is now. The lock must be held. QueueBroken if memory is gone there already."""
        if (place := self.moved) and self.queue is not None and self._settled is not place:
            self._settled = place
            self.put(place, self.queue.base)

    def put(self, place: Place, base: int) -> None:
        """Lay the queue at a place. QueueBroken as `Place.queue`."""
        self.queue, self.memory = place.queue(base), place.memory

    def unsettle(self) -> None:
        """Let go of the memory table in which the queue lay."""
        self._settled, self.memory = None, GuestMemory()

    def replace(self, name: str, fd: OwnedFd | None) -> None:
        """Put another eventfd (`kick`, `call` or `err`) in place, or none; the old one is closed."""
        with self._files_lock:
            old = self._files.pop(name, None)
            if fd is not None:
                self._files[name] = fd
            if old is not None:
                old.close()

    def kick_fd(self) -> int | None:
        """The fd to wait on, if there is one."""
        with self._files_lock:
            return self._files["kick"].fileno() if "kick" in self._files else None

    def take_kick(self, fd: int) -> None:
        """Reset the kick that was seen on `fd`, if it still is this ring's. QueueBroken if it can't be read."""
        with self._files_lock:
            if "kick" in self._files and self._files["kick"].fileno() == fd:
                try:
                    drain(fd)
                except OSError as error:
                    raise QueueBroken(f"its kick can't be read: {error.strerror}") from None

    def signal(self, name: str) -> None:
        """Set the eventfd `call` or `err`, if there is one; one that is full is as good as set."""
        with self._files_lock:
            if (fd := self._files.get(name)) and wait((), 0, (fd,)):
                with contextlib.suppress(OSError):
                    os.write(fd.fileno(), (1).to_bytes(8, sys.byteorder))

    def close(self) -> None:
        """Close the eventfds, and let go of guest memory."""
        self.queue = self.moved = None
        self.unsettle()
        for name in ("kick", "call", "err"):
            self.replace(name, None)


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

    def bind(self, index: int, size: int, base: int, addresses: VringAddr, memory: GuestMemory) -> None:
        """Lay a stopped ring over guest memory. QueueBroken if its parts are not there ("SET_VRING_ADDR")."""
        place = Place(index, size, addresses, memory)
        place.check()
        self.vrings[index].put(place, base)
        self.vrings[index].moved = None

    def move(self, rings: Sequence[tuple[int, int, VringAddr]], memory: GuestMemory) -> None:
        """Lay rings (index, size, addresses) over another memory table, those that are bound; all of them or none.

        Does not wait for a request in progress, which may be what caused this: its ring moves when it is done.
        """
        places = [Place(*row, memory) for row in rings if self.vrings[row[0]].queue is not None]
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
        vring.active = True
        if self._thread is None:
            name = f"vhost-user queues of {type(self._device).__name__}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
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
        if vring.lock.acquire(timeout=DRAIN_TIMEOUT):
            vring.lock.release()
        else:
            vring.epoch += 1
            log.warning("ring %d was stopped while a request of it was still in progress", index)
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
        self._thread.join(DRAIN_TIMEOUT)
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
                try:
                    if (queue := vring.settle()) is None:
                        return
                    more = self._batch(vring, queue)
                except QueueBroken as error:
                    if not vring.settled:
                        continue
                    self._break(vring, error)
                    return
            if not more:
                return

    def _batch(self, vring: Vring, queue: SplitQueue) -> bool:
        """Process what waits, a queue's length at most, and publish it in one go; whether there was anything."""
        epoch, memory, chain = vring.epoch, vring.memory, None
        try:
            for _ in range(queue.size):
                if not vring.active or not vring.settled or (chain := queue.pop()) is None:
                    break
                self._process(vring.index, chain)
                if vring.epoch == epoch:
                    queue.push(chain)
                    if self.log:
                        self._log_chain(memory, chain)
        finally:
            if vring.epoch == epoch and queue.publish():
                self._log_used(vring, queue)
                vring.signal("call")
        return chain is not None or not vring.settled

    def _log_chain(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        """Mark what the device may have written for a request, after it has and before the driver is told."""
        if log := self.log:
            with _breaking():
                log.mark_views(memory, chain.writable)

    def _log_used(self, vring: Vring, queue: SplitQueue) -> None:
        """Mark the used ring, which was just written: all of it, for that is a bit or two."""
        if (log := self.log) and vring.used_log is not None:
            with _breaking():
                log.mark(vring.used_log, ring_sizes(queue.size)[2])

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
    """Within it, a write that can't be logged breaks the queue."""
    try:
        yield
    except MemoryFault as error:
        raise QueueBroken(f"a write can't be logged: {error}") from None
