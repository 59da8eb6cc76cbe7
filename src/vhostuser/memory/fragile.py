"""Guest memory of a file that may shrink: reached by copies that survive it, never by a view.

Who touches a page that its file has lost gets SIGBUS, and a peer can truncate any file that is not sealed against it. So the
buffers of such a region are private copies: made when a chain is taken, and written back whole (`pour_back`) before it is
given back, for a device may write anywhere in what it was given. A copy knows where it belongs: it is what its view is of
(`memoryview.obj`). A ring is worked on in a copy as well. Where a page is gone the kernel says so, and the queue is broken.
Compiled rings need these queues only for what is not plain, and copies only for a device that wants views.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from .. import _native
from ..errors import MemoryFault, QueueBroken
from ..virtio.chain import DescriptorChain
from ..virtio.numbers import DESCRIPTOR_SIZE, EVENT_SIZE
from ..virtio.packed import FIRST_BASE, FLAGS, PackedQueue
from ..virtio.split import USED_HEADER, SplitQueue, ring_sizes
from ..virtio.walk import Memory
from . import mapping

MAX_COPIES: Final = 256 << 20
"""Bytes of a memory table's buffers that may be copied at a time: a chain may name the same memory over and over."""


TAIL: Final = 8
"""Where the second half of a descriptor begins, in which a packed ring has the length, the id and the flags."""


class Copies:
    """How many bytes may still be copied, by all queues together."""

    def __init__(self, limit: int = MAX_COPIES) -> None:
        self.limit = self._left = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Count `size` bytes; MemoryFault if that is too much."""
        with self._lock:
            if size > self._left:
                raise MemoryFault(f"{size:#x} bytes more to copy than the {self.limit:#x} that may be in use at a time")
            self._left -= size

    def give(self, size: int) -> None:
        """They are gone."""
        with self._lock:
            self._left += size


class Placed(bytearray):
    """Bytes of ours that stand for those at `address`."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(size)
        self.address = address


class Copy(Placed):
    """A private copy of the bytes at `address`; counted as long as it lives."""

    def __init__(self, address: int, size: int, copies: Copies) -> None:
        self._counted = 0
        copies.take(size)
        self._copies, self._counted = copies, size
        super().__init__(address, size)
        mapping.fill(self, address)

    def __del__(self) -> None:
        if self._counted:
            self._copies.give(self._counted)


class FragileView:
    """A region's bytes: a slice of it is a view of a private copy."""

    def __init__(self, mapped: memoryview, address: int, copies: Copies) -> None:
        self.nbytes, self.readonly = mapped.nbytes, mapped.readonly
        self._mapped, self._address, self._copies = mapped, address, copies

    @property
    def bare(self) -> memoryview:
        """The bytes themselves: for compiled code that survives their end."""
        return self._mapped

    def __getitem__(self, part: slice) -> memoryview:
        start, stop, _ = part.indices(self.nbytes)
        return self.copy_at(self._address + start, stop - start) if start < stop else memoryview(b"")

    def copy_at(self, address: int, size: int) -> memoryview:
        """A view of a private copy of bytes of the region that lie at `address` in this process."""
        view = memoryview(Copy(address, size, self._copies))
        return view.toreadonly() if self.readonly else view


def pour_back(chain: DescriptorChain) -> None:
    """Put what a device wrote into copies where it belongs. MemoryFault if that is gone, or was for the device."""
    for view in _made_views(chain):
        if isinstance(view.obj, Copy):
            mapping.pour(view.obj, view.obj.address)


def _writable(chain: DescriptorChain) -> Sequence[memoryview]:
    return chain.writable


_made_views = _native.chain.made_views if _native.accelerated else _writable


class RingPart:
    """A part of a ring in fragile memory: where it lies, and `copy`, which is worked on in its place."""

    def __init__(self, address: int, size: int, home: memoryview | FragileView) -> None:
        self.address, self.nbytes, self.readonly = address, size, home.readonly
        self._home = home
        self.copy = memoryview(Placed(address, size))

    @property
    def fragile(self) -> bool:
        """Its file may shrink."""
        return isinstance(self._home, FragileView)

    def refresh(self, start: int = 0, stop: int | None = None) -> None:
        """Take in what is there now. One copy from the start: the kernel copies whole words, so no index is torn."""
        with _Breaking():
            mapping.fill(self.copy[start:stop], self.address + start)

    def write_back(self, start: int, stop: int) -> None:
        """Put some bytes of the copy there."""
        with _Breaking():
            mapping.pour(self.copy[start:stop], self.address + start)


class FragileQueue(SplitQueue):
    """A split virtqueue in such memory; its buffers may be copies or not."""

    def __init__(
        self,
        size: int,
        descriptors: RingPart,
        available: RingPart,
        used: RingPart,
        memory: Memory,
        *,
        base: int = 0,
        indirect: bool = True,
    ) -> None:
        self._table, self._offered, self._given = descriptors, available, used
        _, offered, self._end = ring_sizes(size)
        used.refresh()
        copies = descriptors.copy, available.copy[:offered], used.copy[: self._end]
        super().__init__(size, *copies, memory, base=base, indirect=indirect)
        used.write_back(0, USED_HEADER)

    def pop(self) -> DescriptorChain | None:
        """As any queue does; the table is read at most once a chain."""
        self._offered.refresh()
        return super().pop()

    def publish(self) -> bool:
        """Show the driver all that was pushed: the entries first, then, with a whole word, the index."""
        if not super().publish():
            return False
        self._given.write_back(USED_HEADER, self._end)
        self._given.write_back(0, 2 * USED_HEADER)
        return True

    def _walk(self, head: int) -> DescriptorChain:
        self._table.refresh()
        return super()._walk(head)


class FragilePackedQueue(PackedQueue):
    """A packed virtqueue in such memory."""

    def __init__(
        self,
        size: int,
        descriptors: RingPart,
        driver_event: RingPart,
        device_event: RingPart,
        memory: Memory,
        *,
        base: int = FIRST_BASE,
        indirect: bool = True,
    ) -> None:
        self._table = descriptors
        descriptors.refresh()
        copies = descriptors.copy, driver_event.copy, device_event.copy
        super().__init__(size, *copies, memory, base=base, indirect=indirect)
        device_event.write_back(0, EVENT_SIZE)

    def pop(self) -> DescriptorChain | None:
        """As any queue does. The ring is read once more behind the flags that make a chain available, which come last."""
        start = self._available % self.size * DESCRIPTOR_SIZE
        self._table.refresh(start + TAIL, start + DESCRIPTOR_SIZE)
        if self._offered(self._available) is not None:
            self._table.refresh()
        return super().pop()

    def push(self, chain: DescriptorChain) -> None:
        """Give a request back: all but the flags, which are written by `publish`."""
        start = self._used % self.size * DESCRIPTOR_SIZE
        super().push(chain)
        self._table.write_back(start + TAIL, start + 2 * FLAGS)

    def publish(self) -> bool:
        """Show the driver all that was pushed, the first descriptor last, each with a whole word that its flags end."""
        slots = [slot for slot, _ in self._hidden]
        if not super().publish():
            return False
        for slot in reversed(slots):
            self._table.write_back(slot * DESCRIPTOR_SIZE + TAIL, (slot + 1) * DESCRIPTOR_SIZE)
        return True


class _Breaking:
    """Within it, memory that is gone is a broken queue."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryFault):
            raise QueueBroken(f"guest memory is gone: {error}") from None
