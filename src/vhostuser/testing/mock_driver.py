"""A mock driver: a ring in memory that a test shares, and requests, right or wrong, whose buffers lie anywhere."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import U64
from ..virtio.chain import DescriptorChain
from ..virtio.formats import SPLIT, Format
from ..virtio.numbers import DESCRIPTOR_SIZE
from .raw_frontend import RawFrontend
from .wire import DEADLINE

SIZE = 16


class MockDriver:
    """Ring `index` of the back-end behind `raw`, laid at user address `at`, of `SIZE` entries; `ring` shows its bytes here.

    `raw` has negotiated, and shared the memory. `driver` is the honest driver half; `describe` writes anything.
    """

    def __init__(self, raw: RawFrontend, ring: memoryview, *, at: int = 0, index: int = 0, form: Format = SPLIT) -> None:
        self.raw = raw
        descriptors, available, used = form.sizes(SIZE)
        behind = descriptors + -(-available // 4) * 4
        self.descriptors = ring[:descriptors]
        self.driver = form.driver(
            SIZE, self.descriptors, ring[descriptors : descriptors + available], ring[behind : behind + used]
        )
        raw.set_up_queue(index, size=SIZE, at=at, ring=form)
        self.call = raw.eventfd()
        raw.accepted(Q.SET_VRING_CALL, U64(index), fds=[self.call])

    def offer(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Offer a chain of (guest address, bytes) and kick; its head, or its id in a packed ring."""
        head = self.driver.add(readable, writable)
        self.kick()
        return head

    def describe(self, slot: int, *fields: int) -> None:
        """Overwrite a descriptor: address, length, and flags and next (of a packed ring: id and flags)."""
        entry = b"".join(value.to_bytes(size, "little") for value, size in zip(fields, (8, 4, 2, 2), strict=True))
        self.descriptors[slot * DESCRIPTOR_SIZE : (slot + 1) * DESCRIPTOR_SIZE] = entry

    def kick(self) -> None:
        """Notify the device."""
        if self.raw.kick is None:
            raise AssertionError("no ring was set up")
        os.eventfd_write(self.raw.kick.fileno(), 1)

    def exchange(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Offer a chain and wait for it; the bytes that the device says it wrote."""
        head = self.offer(readable, writable)
        while (done := self.driver.collect()) is None:
            self.wait(self.call.fileno(), f"chain {head} is not given back")
        if done[0] != head:
            raise AssertionError(f"chain {done[0]} came back instead of {head}")
        return done[1]

    def broken(self) -> None:
        """Wait until the device says that the queue is broken."""
        if self.raw.err is None:
            raise AssertionError("no ring was set up")
        self.wait(self.raw.err.fileno(), "the queue is not broken")

    def wait(self, fd: int, otherwise: str) -> None:
        """Wait for an eventfd and reset it."""
        if not select.select([fd], [], [], DEADLINE)[0]:
            raise AssertionError(otherwise)
        os.eventfd_read(fd)


def chain_of(*readable: bytes, room: Sequence[int] = ()) -> DescriptorChain:
    """A request for `Device.process` without any ring: one buffer a part of it, and one of each of the bytes in `room`.

    What the device wrote is `answer_of(chain)`.
    """
    return DescriptorChain(0, [memoryview(part) for part in readable], [memoryview(bytearray(size)) for size in room])


def answer_of(chain: DescriptorChain) -> bytes:
    """The bytes that the device says it wrote."""
    return b"".join(bytes(view) for view in chain.writable)[: chain.written]
