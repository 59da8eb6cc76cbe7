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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .counters import Counters
from .device import Device
from .errors import MemoryFault, QueueBroken, VhostUserError
from .limited_log import LimitedLog
from .memory.guest import GuestMemory
from .protocol.payloads import VringAddr
from .transport.fds import OwnedFd
from .transport.loop import Poller, Waker, drain
from .transport.socket import wait
from .virtio.chain import DescriptorChain
from .virtqueue import DeviceQueue, new_device_queue, part_sizes

log = logging.getLogger(__name__)
DRAIN_TIMEOUT: Final = 1.0
"""How long a stop waits for the request in progress. QEMU answers nothing while it waits for GET_VRING_BASE."""


class Place(NamedTuple):
    """Where a ring lies in a memory table."""

    size: int
    descriptors: memoryview
    available: memoryview
    used: memoryview
    memory: GuestMemory
    features: int


@dataclass(slots=True, eq=False)
class Vring:
    """One ring as the back-end runs it."""

    index: int
    queue: DeviceQueue | None = None
    features: int = 0
    """Feature bits that were acknowledged when it was bound."""
    moved: Place | None = None
    """Where the queue lies by a newer memory table; it goes there between two batches, when all is published."""
    active: bool = False
    broken: bool = False
    """The driver left nonsense in it: it rests until it is stopped and set up again."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a request is processed."""
    epoch: int = 0
    """Changes when a stop did not wait for the request in progress, which then may not be given back."""
    _settled: Place | None = None
    _files: dict[str, OwnedFd] = field(default_factory=dict)
    _files_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def settled(self) -> bool:
        """The queue lies where the newest memory table has it."""
        return self.moved is None or self.moved is self._settled

    def settle(self) -> DeviceQueue | None:
        """The queue, laid where it is now, if the ring is active. The lock must be held."""
        if not self.active:
            return None
        if (place := self.moved) and self.queue is not None and self._settled is not place:
            self.queue, self._settled = new_device_queue(*place, base=self.queue.base), place
        return self.queue

    def unsettle(self) -> None:
        """Let go of the memory table in which the queue lay."""
        self._settled = None

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
        self.queue = self.moved = self._settled = None
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

    def bind(self, index: int, size: int, base: int, addresses: VringAddr, memory: GuestMemory, features: int) -> None:
        """Lay a stopped ring over guest memory, under the features that were acknowledged (a mask).

        QueueBroken if its parts are not there ("SET_VRING_ADDR").
        """
        vring = self.vrings[index]
        vring.queue = new_device_queue(*_place(index, size, addresses, memory, features), base=base)
        vring.features, vring.moved = features, None

    def move(self, rings: Sequence[tuple[int, int, VringAddr]], memory: GuestMemory) -> None:
        """Lay rings (index, size, addresses) over another memory table, those that are bound; all of them or none.

        Does not wait for a request in progress, which may be what caused this.
        """
        bound = [row for row in rings if self.vrings[row[0]].queue is not None]
        places = [_place(*row, memory, self.vrings[row[0]].features) for row in bound]
        for (index, _, _), place in zip(bound, places, strict=True):
            self.vrings[index].moved = place

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
                if (queue := vring.settle()) is None:
                    return
                try:
                    more = self._batch(vring, queue)
                except QueueBroken as error:
                    if not vring.settled:
                        continue
                    self._break(vring, error)
                    return
            if not more:
                return

    def _batch(self, vring: Vring, queue: DeviceQueue) -> bool:
        """Process what waits, a queue's length at most, and publish it in one go; whether there was anything."""
        epoch, chain = vring.epoch, None
        try:
            for _ in range(queue.size):
                if not vring.active or not vring.settled or (chain := queue.pop()) is None:
                    break
                self._process(vring.index, chain)
                if vring.epoch == epoch:
                    queue.push(chain)
        finally:
            if vring.epoch == epoch and queue.publish():
                vring.signal("call")
        return chain is not None or not vring.settled

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


def _place(index: int, size: int, addresses: VringAddr, memory: GuestMemory, features: int) -> Place:
    """Where a ring's parts lie in guest memory. QueueBroken if they are not there ("SET_VRING_ADDR")."""
    starts, sizes = (addresses.descriptor, addresses.available, addresses.used), part_sizes(size, features)
    try:
        descriptors, available, used = (memory.at_user(*part) for part in zip(starts, sizes, strict=True))
    except MemoryFault as error:
        raise QueueBroken(f"ring {index} is outside guest memory: {error}") from None
    if used.readonly:
        raise QueueBroken(f"the used ring of ring {index} is in read-only memory")
    return Place(size, descriptors, available, used, memory, features)
