"""The driver half of a split virtqueue in guest memory, as plain as can be: a request and a reply buffer a chain."""

from __future__ import annotations

import struct
import time

from vhostuser.virtio.numbers import DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE

from .qtest import QTest

DESCRIPTOR = struct.Struct("<QIHH")
USED_ELEMENT = struct.Struct("<II")
RINGS = 1 << 17  # bytes kept for the three areas; buffers follow


class Ring:
    """A queue of `size` in the guest memory from `start` to `end`."""

    def __init__(self, qtest: QTest, *, start: int, end: int, size: int) -> None:
        self._qtest = qtest
        self.size = size
        self.descriptors = start
        self.driver_area = start + size * DESCRIPTOR_SIZE
        self.device_area = self.driver_area + (6 + 2 * size + 3) // 4 * 4
        self._pairs = max(size // 2, 1)
        self._buffers = start + RINGS
        self.buffer_size = (end - self._buffers) // self._pairs // 2 & -64
        self._submitted = 0
        self._seen = 0
        self._reply_sizes: dict[int, int] = {}
        self._done: dict[int, int] = {}
        qtest.memwrite(start, bytes(self.device_area + 6 + 8 * size - start))

    def submit(self, request: bytes, reply_size: int) -> int:
        """Make a chain of the request and room for the reply available; gives its head."""
        head = 2 * (self._submitted % self._pairs)
        if head in self._reply_sizes:
            raise RuntimeError(f"queue of {self.size} is full: collect something first")
        if max(len(request), reply_size) > self.buffer_size:
            raise ValueError(f"request and reply are limited to {self.buffer_size} bytes each")
        self._write_chain(head, request, reply_size)
        self._qtest.writew(self.driver_area + 4 + 2 * (self._submitted % self.size), head)
        self._submitted += 1
        self._qtest.writew(self.driver_area + 2, self._submitted & 0xFFFF)
        self._reply_sizes[head] = reply_size
        return head

    def _write_chain(self, head: int, request: bytes, reply_size: int) -> None:
        out, in_ = self._buffer(head), self._buffer(head + 1)
        self._qtest.memwrite(out, request)
        parts = [(out, len(request), 0)] if request else []
        parts += [(in_, reply_size, DESC_WRITE)] if reply_size else []
        for index, (address, length, flags) in enumerate(parts):
            more = DESC_NEXT if index + 1 < len(parts) else 0
            entry = DESCRIPTOR.pack(address, length, flags | more, head + index + 1)
            self._qtest.memwrite(self.descriptors + (head + index) * DESCRIPTOR_SIZE, entry)

    def _buffer(self, index: int) -> int:
        return self._buffers + index * self.buffer_size

    def collect(self, head: int, seconds: float) -> bytes:
        """Wait until the device has used a chain; gives what it wrote."""
        deadline = time.monotonic() + seconds
        while head not in self._done:
            self._look()
            if head not in self._done and time.monotonic() > deadline:
                raise TimeoutError(f"the device did not use the chain at {head} within {seconds} s")
        written = min(self._done.pop(head), self._reply_sizes.pop(head))
        return self._qtest.memread(self._buffer(head + 1), written)

    def _look(self) -> None:
        used = self._qtest.readw(self.device_area + 2)
        if used == self._seen & 0xFFFF:
            time.sleep(0.0005)
        while used != self._seen & 0xFFFF:
            place = self.device_area + 4 + USED_ELEMENT.size * (self._seen % self.size)
            head, written = USED_ELEMENT.unpack(self._qtest.memread(place, USED_ELEMENT.size))
            self._done[head] = written
            self._seen += 1
