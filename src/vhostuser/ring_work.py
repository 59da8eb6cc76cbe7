"""What a queue thread does with a ring: take requests, let the device process them, give them back.

A ring's lock is held while one of its requests is taken, processed or given back: to stop a ring is to take the lock. What
the device keeps (`KEEP`) it completes from any thread; it is given back here all the same, by the thread that works on the
ring, or by a stop that waits for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from .counters import Counters
from .device import Device, Keep
from .errors import MemoryFault, QueueBroken, VhostUserError
from .faults import device_faults
from .limited_log import LimitedLog
from .memory.dirty_log import DirtyLog
from .memory.fragile import pour_back
from .memory.guest import GuestMemory
from .virtio.chain import DescriptorChain
from .virtqueue import DeviceQueue
from .vring import Vring

log = logging.getLogger(__name__)
LONGEST_WRITTEN: Final = (1 << 32) - 1
"""What a used entry can say."""


class RingWork:
    """The requests of a device's rings, whatever thread they are processed in."""

    def __init__(self, device: Device, counters: Counters, limited: LimitedLog) -> None:
        self._device, self._counters, self._log = device, counters, limited
        self._choosy = type(device).takes is not Device.takes
        self.log: DirtyLog | None = None
        """Where writes to guest memory are logged, while they are."""

    def work(self, vring: Vring) -> None:
        """Process all that waits in a ring, and give back what is completed, publishing once a batch."""
        while vring.active:
            with vring.lock:
                queue = vring.queue
                try:
                    if (queue := vring.settle()) is None:
                        return
                    more = self._batch(vring, queue)
                except QueueBroken as error:
                    if not vring.settled or vring.queue is not queue:
                        continue
                    self.break_off(vring, error)
                    return
                except Exception as error:
                    if vring.queue is not queue:
                        continue
                    self._log.exception(f"queue {vring.index} failed")
                    self.break_off(vring, QueueBroken(f"{type(error).__name__}: {error}"))
                    return
            if not more:
                return

    def collect(self, vring: Vring) -> None:
        """Give back what is completed of a ring that takes no more requests. The lock must be held."""
        if (queue := vring.queue) is None:
            return
        try:
            self._take_completed(vring, queue, vring.epoch)
            with vring.books:
                self.publish(vring, queue)
        except QueueBroken as error:
            self._log.warning(f"queue {vring.index}: {error}")

    def publish(self, vring: Vring, queue: DeviceQueue) -> None:
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

    def break_off(self, vring: Vring, error: QueueBroken) -> None:
        """This queue stops until it is set up again; the others live."""
        vring.active, vring.broken = False, True
        vring.kept.clear()
        self._counters.broken += 1
        self._log.warning(f"queue {vring.index} is broken: {error}")
        vring.signal("err")

    def _batch(self, vring: Vring, queue: DeviceQueue) -> bool:
        """Process what waits, a queue's length at most, and publish it in one go; whether there was anything."""
        epoch, chain = vring.epoch, None
        try:
            self._take_completed(vring, queue, epoch)
            for _ in range(queue.size):
                if vring.epoch != epoch or not vring.active or not vring.settled or not self._wanted(vring.index):
                    chain = None
                    break
                if (chain := queue.pop()) is None:
                    break
                self._handle(vring, queue, chain, epoch)
        finally:
            with vring.books:
                if vring.epoch == epoch:
                    self.publish(vring, queue)
        return chain is not None or not vring.settled

    def _handle(self, vring: Vring, queue: DeviceQueue, chain: DescriptorChain, epoch: int) -> None:
        if self._process(vring.index, chain) is not Keep.KEEP:
            self._give_back(vring, queue, chain, epoch)
            return
        with vring.books:
            if vring.epoch == epoch and vring.place:
                vring.kept[chain] = vring.place.memory
        self._take_completed(vring, queue, epoch)

    def _take_completed(self, vring: Vring, queue: DeviceQueue, epoch: int) -> None:
        """Give back what the device has kept and completed. What it does not have any more it may complete in vain."""
        for chain in vring.take_completed():
            if memory := vring.kept.pop(chain, None):
                self._give_back(vring, queue, chain, epoch, memory)

    def _give_back(
        self, vring: Vring, queue: DeviceQueue, chain: DescriptorChain, epoch: int, memory: GuestMemory | None = None
    ) -> None:
        """Give a request back, unless a stop has abandoned it. `memory` is where it lies, if it was kept."""
        with vring.books:
            if vring.epoch == epoch and vring.place:
                self._settle_writes(memory or vring.place.memory, chain)
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

    def _wanted(self, index: int) -> bool:
        try:
            return not self._choosy or self._device.takes(index)
        except device_faults():
            self._log.exception(f"{type(self._device).__name__}.takes failed for queue {index}")
            return False

    def _process(self, index: int, chain: DescriptorChain) -> Keep | None:
        try:
            return self._device.process(index, chain)
        except VhostUserError as error:
            self._log.warning(f"a request of queue {index} failed: {error}")
        except device_faults():
            self._log.exception(f"{type(self._device).__name__}.process failed for a request of queue {index}")
        return None


@contextlib.contextmanager
def _breaking() -> Iterator[None]:
    """Within it, a write that can't be made or logged breaks the queue."""
    try:
        yield
    except MemoryFault as error:
        raise QueueBroken(f"a write is lost: {error}") from None
