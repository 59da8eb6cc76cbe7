"""Queues of both formats full of the chains that the C loops have, each with a driver; what they take is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Final, TypeAlias

from vhostuser import DescriptorChain
from vhostuser.memory.guest import GuestMemory, GuestRegion
from vhostuser.virtio.numbers import DESC_AVAIL, DESC_NEXT, DESC_USED, DESC_WRITE, DESCRIPTOR_SIZE, Feature
from vhostuser.virtio.packed import FIRST_BASE, PackedQueue, packed_sizes
from vhostuser.virtio.split import SplitQueue, ring_sizes
from vhostuser.virtqueue import new_device_queue

SIZE, CHAINS, LENGTHS, MEMORY = 1024, 256, (16, 64, 1), 1 << 20
PACKED_SIZE: Final = CHAINS * len(LENGTHS)
"""A batch fills it, so the driver writes the same descriptors each time but for the wrap counter."""

Serve: TypeAlias = Callable[[int], int]
"""Serves that many batches; the nanoseconds that it took."""


def guest_memory() -> GuestMemory:
    """Two regions side by side."""
    memory = memoryview(bytearray(MEMORY))
    halves = (memory[: MEMORY // 2], memory[MEMORY // 2 :])
    return GuestMemory([GuestRegion(at * MEMORY // 2, 0, half, ()) for at, half in enumerate(halves)])


def entry(index: int, third: int, fourth: int) -> bytes:
    """A descriptor's bytes; the two formats differ in the meaning of the last two fields."""
    fields = ((index * 64, 8), (LENGTHS[index % len(LENGTHS)], 4), (third, 2), (fourth, 2))
    return b"".join(value.to_bytes(size, "little") for value, size in fields)


def flags_of(index: int) -> int:
    return DESC_WRITE if index % len(LENGTHS) == len(LENGTHS) - 1 else DESC_NEXT


def handle(chain: DescriptorChain) -> None:
    """A device that does nothing but say how much it wrote."""
    chain.written = 1


class Bench:
    """A split queue."""

    def __init__(self, *, pure: bool) -> None:
        self.descriptors, self.rings, self.used = (memoryview(bytearray(size)) for size in ring_sizes(SIZE))
        self.available = self.rings.cast("H")
        for index in range(CHAINS * len(LENGTHS)):
            flags = flags_of(index)
            self.descriptors[DESCRIPTOR_SIZE * index :][:DESCRIPTOR_SIZE] = entry(
                index, flags, index + 1 if flags == DESC_NEXT else 0
            )
        for position in range(SIZE):
            self.available[2 + position] = position % CHAINS * len(LENGTHS)
        parts = (SIZE, self.descriptors, self.rings, self.used, guest_memory())
        self.queue = SplitQueue(*parts) if pure else new_device_queue(*parts, 0, base=0)

    def offer(self) -> None:
        self.available[1] = (self.available[1] + CHAINS) & 0xFFFF

    def one_by_one(self, batches: int) -> int:
        """A Python handler for each request, and one publication a batch."""
        queue, started = self.queue, time.perf_counter_ns()
        for _ in range(batches):
            self.offer()
            while (chain := queue.pop()) is not None:
                handle(chain)
                queue.push(chain)
            queue.publish()
        return time.perf_counter_ns() - started

    def many(self, batches: int) -> int:
        """The same with 16 chains a call."""
        queue, started = self.queue, time.perf_counter_ns()
        if isinstance(queue, SplitQueue | PackedQueue):
            raise TypeError("the pure queue gives one chain at a time")
        for _ in range(batches):
            self.offer()
            while chains := queue.pop_many(16):
                for chain in chains:
                    handle(chain)
                    queue.push(chain)
            queue.publish()
        return time.perf_counter_ns() - started

    def native(self, loop: ModuleType) -> Serve:
        """No Python between two publications."""
        return lambda batches: all_heard(loop.serve(self.queue, self.available, batches, CHAINS), batches)


class PackedBench(Bench):
    """A packed queue."""

    def __init__(self, *, pure: bool) -> None:
        self.descriptors, driver, device = (memoryview(bytearray(size)) for size in packed_sizes(PACKED_SIZE))
        self.rounds = [
            b"".join(entry(at, at - at % len(LENGTHS), flags_of(at) | mark) for at in range(PACKED_SIZE))
            for mark in (DESC_AVAIL, DESC_USED)
        ]
        parts = (PACKED_SIZE, self.descriptors, driver, device, guest_memory())
        packed = 1 << Feature.RING_PACKED
        self.queue = PackedQueue(*parts) if pure else new_device_queue(*parts, packed, base=FIRST_BASE)

    def offer(self) -> None:
        self.descriptors[:] = self.rounds[self.queue.base != FIRST_BASE]

    def native(self, loop: ModuleType) -> Serve:
        rounds = memoryview(b"".join(self.rounds)).cast("B", (2, self.descriptors.nbytes))

        def serve(batches: int) -> int:
            even = batches + batches % 2  # so that the next call begins in the first round
            return all_heard(loop.serve_packed(self.queue, self.descriptors, rounds, even), even) * batches // even

        return serve


def all_heard(outcome: tuple[int, int], batches: int) -> int:
    """The nanoseconds of an outcome, if each batch was given back."""
    spent, heard = outcome
    if heard != batches:
        raise RuntimeError(f"the driver heard of {heard} batches of {batches}")
    return spent
