"""The driver half of a packed virtqueue in guest memory: ours over a copy, whose descriptors go to and fro by qtest."""

from __future__ import annotations

import time

from vhostuser.virtio.numbers import DESCRIPTOR_SIZE
from vhostuser.virtio.packed import packed_sizes
from vhostuser.virtio.packed_driver import PackedDriverQueue

from .qtest import QTest

RINGS = 1 << 20  # bytes kept for the ring; buffers follow
FLAGS_AT = DESCRIPTOR_SIZE - 2


class PackedRing:
    """A queue of `size` in the guest memory from `start` to `end`, with one request at a time."""

    def __init__(self, qtest: QTest, *, start: int, end: int, size: int) -> None:
        self._qtest = qtest
        self.size = size
        sizes = packed_sizes(size)
        self.descriptors, self.driver_area = start, start + sizes[0]
        self.device_area = self.driver_area + sizes[1]
        self._copy = memoryview(bytearray(sizes[0]))
        areas = memoryview(bytearray(sizes[1] + sizes[2]))
        self._driver = PackedDriverQueue(size, self._copy, areas[: sizes[1]], areas[sizes[1] :])
        self._at = 0
        self._out, self._in = start + RINGS, start + RINGS + (end - start - RINGS) // 2
        qtest.memwrite(start, bytes(sum(sizes)))

    def submit(self, request: bytes, reply_size: int) -> int:
        """Make a chain of the request and room for the reply available; gives its buffer id."""
        self._qtest.memwrite(self._out, request)
        given = self._driver.add([(self._out, len(request))], [(self._in, reply_size)])
        for slot in ((self._at + 1) % self.size, self._at):
            entry = bytes(self._copy[DESCRIPTOR_SIZE * slot : DESCRIPTOR_SIZE * (slot + 1)])
            self._qtest.memwrite(self.descriptors + DESCRIPTOR_SIZE * slot, entry[:FLAGS_AT])
            self._qtest.memwrite(self.descriptors + DESCRIPTOR_SIZE * slot + FLAGS_AT, entry[FLAGS_AT:])
        return given

    def collect(self, head: int, seconds: float) -> bytes:
        """Wait until the device has used the chain; gives what it wrote."""
        deadline = time.monotonic() + seconds
        start = DESCRIPTOR_SIZE * self._at
        while (done := self._driver.collect()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the device did not use the chain at {head} within {seconds} s")
            self._copy[start : start + DESCRIPTOR_SIZE] = self._qtest.memread(self.descriptors + start, DESCRIPTOR_SIZE)
        self._at = (self._at + 2) % self.size
        return self._qtest.memread(self._in, done[1])
