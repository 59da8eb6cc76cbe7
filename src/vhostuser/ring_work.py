"""What a queue thread does with a ring: take requests, let the device process them, give them back.

A ring's lock is held while one of its requests is taken, processed or given back: to stop a ring is to take the lock. What
the device keeps (`KEEP`) it completes from any thread; it is given back here all the same, by the thread that works on the
ring, or by a stop that waits for it. So requests are given back in the order in which they were taken, but for those that
are kept; and these, too, where the driver has taken IN_ORDER.
"""

from __future__ import annotations

import logging
import reprlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import _native
from .counters import Counters
from .device import KEEP, CompiledHandler, Device, Keep
from .errors import MemoryFault, QueueBroken, VhostUserError
from .faults import device_faults
from .limited_log import LimitedLog
from .memory.dirty_log import DirtyLog
from .memory.fragile import pour_back
from .memory.guest import GuestMemory
from .virtio.chain import DescriptorChain
from .virtqueue import DeviceQueue
from .vring import Vring

if TYPE_CHECKING:
    from ._native.walk import DeviceRing

log = logging.getLogger(__name__)
LONGEST_WRITTEN: Final = (1 << 32) - 1
"""What a used entry can say."""


@dataclass(frozen=True, slots=True)
class Post:
    """How a thread that has one ring only waits for it, in compiled code: `spin` nanoseconds awake, then on an fd."""

    waker: int
    spin: int


class RingWork:
    """The requests of a device's rings, whatever thread they are processed in.

    `ready` is called in one of these when a driver has taken the device, before its first request.
    """

    def __init__(self, device: Device, counters: Counters, ready: Callable[[], None], limited: LimitedLog) -> None:
        self._device, self._counters, self._ready, self._log = device, counters, ready, limited
        self._choosy = type(device).takes is not Device.takes
        self._in_batches = type(device).process_batch is not Device.process_batch
        self._starting = threading.Lock()
        self._announced = self._started = 0
        self._warned = False
        self.log: DirtyLog | None = None
        """Where writes to guest memory are logged, while they are."""

    def announce(self) -> None:
        """Have `ready` called before anything else is."""
        self._announced += 1

    def begin(self) -> None:
        """Call `ready` if that is due. Who comes meanwhile waits until it is done."""
        with self._starting:
            if (announced := self._announced) != self._started:
                self._call_ready()
                self._started = announced

    def _call_ready(self) -> None:
        try:
            self._ready()
        except VhostUserError as error:
            self._log.warning(f"the start of the device failed: {error}")
        except device_faults():
            self._log.exception("the start of the device failed")

    def work(self, vring: Vring, post: Post | None = None) -> None:
        """Process all that waits in a ring, and give back what is completed, publishing once a batch.

        With a `post` stay, and wait for more, until the waker is set. Nothing is done while `begin` is due.
        """
        while vring.active:
            with vring.lock:
                queue, epoch = vring.queue, vring.epoch
                try:
                    if self._announced != self._started or (queue := vring.settle()) is None:
                        return
                    more = self._turn(vring, queue, epoch, post)
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

    def _turn(self, vring: Vring, queue: DeviceQueue, epoch: int, post: Post | None) -> bool:
        """What there is to do for a ring; whether there may be more."""
        ring = None if self._choosy else _compiled(queue)
        plain = _native.accelerated and not (self.log or self._choosy or vring.calls_by_message)  # it neither logs nor sends
        held = vring.kept.holds  # compiled code holds nothing back
        handler = self._device.compiled() if plain and not held else None
        if post is None or ring is None:
            return self._quietly(vring, ring, epoch) if ring else self._batch(vring, queue, queue.size)
        with vring.lent_kick() as kick:
            if kick is None:
                return False
            while (more := self._stay(vring, ring, epoch, post, kick, handler)) and vring.active and vring.settled:
                if vring.epoch != epoch or vring.kept.holds is not held:
                    break
            return more

    def _quietly(self, vring: Vring, queue: DeviceRing, epoch: int) -> bool:
        """A batch without kicks meanwhile; what came before they are wanted again is more to do."""
        queue.disable_kicks()
        if self._batch(vring, queue, queue.size):
            return True
        return vring.epoch == epoch and queue.enable_kicks()

    def _stay(
        self, vring: Vring, queue: DeviceRing, epoch: int, post: Post, kick: int, handler: CompiledHandler | None
    ) -> bool:
        """Do what there is and wait for more, until Python is wanted for something; false if the thread was woken."""
        if handler:
            why = self._serve(vring, queue, epoch, handler, post, kick)
            if why == _native.handover.LEFT:
                self._batch(vring, queue, 1)
        elif self._batch(vring, queue, queue.size) or not vring.handover:
            return True
        else:
            why = vring.handover.wait(queue, epoch, kick, post.waker, post.spin)
        if why == _native.handover.UNREADABLE:
            vring.check_kick()
        elif why == _native.handover.GONE:
            raise QueueBroken("guest memory is gone: its file was truncated")
        return why != _native.handover.WOKEN

    def _serve(self, vring: Vring, queue: DeviceRing, epoch: int, handler: CompiledHandler, post: Post, kick: int) -> int:
        """Let compiled code serve the ring; why it comes back."""
        if not vring.handover:
            return _native.handover.LEFT
        vring.in_compiled = True
        try:
            return handler.serve(queue, vring.handover, epoch, kick, post.waker, post.spin)
        finally:
            vring.in_compiled = False

    def collect(self, vring: Vring) -> None:
        """Give back what is completed of a ring that takes no more requests. The lock must be held."""
        if (queue := vring.queue) is None:
            return
        try:
            self._take_completed(vring, queue, vring.epoch)
            with vring.books:
                self.publish(vring, queue)
                if ring := _compiled(queue):
                    ring.enable_kicks()  # for whoever has it next
        except QueueBroken as error:
            self._log.warning(f"queue {vring.index}: {error}")

    def publish(self, vring: Vring, queue: DeviceQueue) -> None:
        """Show the driver what was pushed, mark where that was written, and notify it if it wants that."""
        if not vring.pushed:
            return
        vring.pushed, notify = 0, queue.publish()
        if (log := self.log) and (place := vring.place) and vring.used_log is not None:
            try:
                log.mark(vring.used_log, place.sizes[2])
                log.mark_views(place.memory, place.written_views())
            except MemoryFault as error:
                raise _lost(error) from None
        if notify:
            vring.signal("call")

    def break_off(self, vring: Vring, error: QueueBroken) -> None:
        """This queue stops until it is set up again; the others live."""
        vring.active, vring.broken = False, True
        vring.kept.clear()
        self._counters.broken += 1
        self._log.warning(f"queue {vring.index} is broken: {error}")
        vring.signal("err")

    def _batch(self, vring: Vring, queue: DeviceQueue, most: int) -> bool:
        """Process what waits, `most` requests at most, and publish it in one go; whether there was anything."""
        epoch, chain = vring.epoch, None
        try:
            self._take_completed(vring, queue, epoch)
            for _ in range(most):
                resting = not vring.active or (vring.moved and not vring.settled)
                if resting or vring.epoch != epoch or (self._choosy and not self._wanted(vring.index)):
                    chain = None
                    break
                if self._in_batches:
                    chain = self._handle_batch(vring, queue, most, epoch)
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
        answer = self._process(vring.index, chain)
        keeps = answer is not None and self._keeps(answer)
        if not keeps and not (vring.kept.in_order and vring.kept.holds):  # the flag alone costs no call
            self._give_back(vring, queue, chain, epoch)
            return
        with vring.books:
            if vring.epoch == epoch and vring.place:
                vring.kept.add(chain, vring.place.memory)
        if not keeps:
            vring.complete(chain)  # it is done, but others come before it
        self._take_completed(vring, queue, epoch)

    def _keeps(self, answer: object) -> bool:
        """Whether the device keeps a request; warns once of an answer of `process` that means nothing."""
        if answer is not KEEP and not self._warned:
            self._warned = True
            name = f"{type(self._device).__name__}.process"
            self._log.warning(f"{name} returned {reprlib.repr(answer)}, neither None nor KEEP: the request is given back")
        return answer is KEEP

    def _handle_batch(self, vring: Vring, queue: DeviceQueue, most: int, epoch: int) -> DescriptorChain | None:
        """Handle what waits, all at once: the last of it, if there is any."""
        chains = _pop_many(queue, most)
        if not chains:
            return None
        try:
            self._device.process_batch(vring.index, chains)
        except VhostUserError as error:
            self._log.warning(f"{len(chains)} requests of queue {vring.index} failed: {error}")
        except device_faults():
            self._log.exception(f"{type(self._device).__name__}.process_batch failed for queue {vring.index}")
        for chain in chains:
            self._give_back(vring, queue, chain, epoch)
        return chains[-1]

    def _take_completed(self, vring: Vring, queue: DeviceQueue, epoch: int) -> None:
        """Give back what the device has kept and completed. What it does not have any more it may complete in vain."""
        for chain, memory in vring.kept.take():
            self._give_back(vring, queue, chain, epoch, memory)

    def _give_back(
        self, vring: Vring, queue: DeviceQueue, chain: DescriptorChain, epoch: int, memory: GuestMemory | None = None
    ) -> None:
        """Give a request back, unless a stop has abandoned it. `memory` is where it lies, if it was kept."""
        vring.books.acquire()  # `with` takes twice as long, for each request
        try:
            if vring.epoch == epoch and (place := vring.place):
                if self.log or place.memory.fragile or memory:
                    self._settle_writes(memory or place.memory, chain)
                if chain.written > LONGEST_WRITTEN:  # noqa: PLR1730  # twice as fast as min(), for each request
                    chain.written = LONGEST_WRITTEN
                queue.push(chain)
                vring.pushed += 1
        finally:
            vring.books.release()

    def _settle_writes(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        """What the device wrote for a request reaches fragile memory and the dirty log, before the driver is told."""
        try:
            if memory.fragile:
                pour_back(chain)
            if log := self.log:
                log.mark_views(memory, chain.writable)
        except MemoryFault as error:
            raise _lost(error) from None

    def _wanted(self, index: int) -> bool:
        try:
            return self._device.takes(index)
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


def _pop_many(queue: DeviceQueue, most: int) -> list[DescriptorChain]:
    """What waits in a queue; QueueBroken only where the first of it is broken."""
    if ring := _compiled(queue):
        return ring.pop_many(most)
    chains: list[DescriptorChain] = []
    while len(chains) < most:
        try:
            chain = queue.pop()
        except QueueBroken:
            if not chains:
                raise
            break
        if chain is None:
            break
        chains.append(chain)
    return chains


def _compiled(queue: DeviceQueue) -> DeviceRing | None:
    """The queue, if it is a compiled one."""
    return queue if _native.accelerated and isinstance(queue, _native.walk.DeviceRing) else None


def _lost(error: MemoryFault) -> QueueBroken:
    """A write that can't be made or logged breaks the queue."""
    return QueueBroken(f"a write is lost: {error}")
