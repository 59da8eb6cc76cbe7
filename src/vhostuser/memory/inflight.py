"""The inflight area: what a back-end had taken when it died, for the one that comes after it ("Inflight I/O tracking").

It is shared memory that the front-end keeps: one part a queue, a header and an entry for each descriptor. A back-end that is
killed leaves it as its last store did, so the order of stores is all that counts, and each of them is one access. A file
that may shrink is reached by copies that survive it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import MemoryFault, QueueBroken, RemoteProtocolError
from ..protocol.payloads import Inflight
from ..transport.fds import OwnedFd
from ..virtio.chain import Descriptor, DescriptorChain
from . import mapping
from .guest import span

VERSION: Final = 1
VERSION_AT: Final = 8
COUNT_AT: Final = 10
COUNTER_MASK: Final = (1 << 64) - 1
ALIGNMENT: Final = 64
"""Where the part of a queue begins: as in libvhost-user and DPDK, for an area may come from either."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields lie: the bytes of a header and of an entry ("QueueRegionSplit", "QueueRegionPacked")."""

    header: int
    entry: int

    def size(self, entries: int) -> int:
        """Bytes of a queue's part."""
        return -(-(self.header + self.entry * entries) // ALIGNMENT) * ALIGNMENT


SPLIT: Final = Layout(16, 16)
PACKED: Final = Layout(32, 32)


class Fields:
    """The part of one queue. Offsets are multiples of the size. QueueBroken where its pages are gone."""

    def __init__(self, part: memoryview, address: int, entries: int, *, fragile: bool) -> None:
        self.entries = entries
        self.solid = None if fragile else part
        """All of it as a view, if its file can't shrink."""
        self._address = address
        self._views = {} if fragile else {1: part, 2: part.cast("H"), 4: part.cast("I"), 8: part.cast("Q")}
        self._keep = part

    def get(self, offset: int, size: int) -> int:
        """One field."""
        if self._views:
            return self._views[size][offset // size]
        try:
            return int.from_bytes(mapping.copy_from(self._address + offset, size), "little")
        except MemoryFault as error:
            raise QueueBroken(f"the inflight area is gone: {error}") from None

    def put(self, offset: int, size: int, value: int) -> None:
        """Store one field, in one access."""
        if self._views:
            self._views[size][offset // size] = value
            return
        try:
            mapping.copy_to(self._address + offset, value.to_bytes(size, "little"))
        except MemoryFault as error:
            raise QueueBroken(f"the inflight area is gone: {error}") from None


class Queue(Protocol):
    """The queue whose requests are tracked."""

    @property
    def size(self) -> int:
        """Its entries."""

    @property
    def base(self) -> int:
        """Where it goes on."""

    def pop(self) -> DescriptorChain | None:
        """Take a request."""

    def again(self, head: int, rows: Sequence[Descriptor]) -> DescriptorChain:
        """Take one once more."""

    def push(self, chain: DescriptorChain) -> None:
        """Give it back."""

    def publish(self) -> bool:
        """Show what was given back."""


class Recovered:
    """What was left in progress: entries in the order in which they were taken, and the counter of the next one."""

    def __init__(self, taken: list[tuple[int, int]]) -> None:
        self.entries = [entry for _, entry in sorted(taken)]
        self.counter = (max((counter for counter, _ in taken), default=-1) + 1) & COUNTER_MASK


def is_new(fields: Fields, size: int) -> bool:
    """Whether nobody has used the part yet, for a ring of `size`. QueueBroken if it is none of that ring."""
    if size > fields.entries:
        raise QueueBroken(f"the inflight area has {fields.entries} entries, the ring {size}")
    version = fields.get(VERSION_AT, 2)
    if version not in (0, VERSION):
        raise QueueBroken(f"the inflight area has version {version}, not {VERSION}")
    return not version


def make_valid(fields: Fields) -> None:
    """All else is there: from now on the part is as its version says."""
    fields.put(COUNT_AT, 2, fields.entries)
    fields.put(VERSION_AT, 2, VERSION)


def enter(fields: Fields, entry: int, counter: int) -> None:
    """The request of the entry at an offset is in progress: its place in the order first."""
    fields.put(entry + 8, 8, counter)
    fields.put(entry, 1, 1)


def in_progress(fields: Fields, layout: Layout, size: int) -> Recovered:
    """The entries that say so."""
    places = [layout.header + layout.entry * at for at in range(size)]
    return Recovered([(fields.get(place + 8, 8), at) for at, place in enumerate(places) if fields.get(place, 1)])


class InflightArea:
    """The area of SET_INFLIGHT_FD, mapped. RemoteProtocolError if it can't be, or is too small for what it says."""

    def __init__(self, body: Inflight, fd: int) -> None:
        self.num_queues, self.queue_size = body.num_queues, body.queue_size
        fragile, there = mapping.may_shrink(fd), os.fstat(fd).st_size
        self._fragile = fragile
        needed = area_size(SPLIT, body.num_queues, body.queue_size)
        if body.mmap_size < needed:
            text = f"SET_INFLIGHT_FD mmap_size {body.mmap_size:#x} is less than its queues need, {needed:#x}"
            raise _refusal(text, "mmap_size", body.mmap_size, needed)
        if body.mmap_offset % 8 or body.mmap_offset + body.mmap_size > there:
            text = f"SET_INFLIGHT_FD mmap_offset {body.mmap_offset:#x} + mmap_size {body.mmap_size:#x}"
            text = f"{text} is no multiple of 8, or passes the file's end {there:#x}"
            raise _refusal(text, "mmap_offset", body.mmap_offset, there)
        try:
            start, length, skip = span(body.mmap_offset, body.mmap_size, mapping.block_size(fd))
            mapped = mapping.map_file(fd, length, start)
        except OSError as error:
            text = f"SET_INFLIGHT_FD: the area can't be mapped: {error}"
            raise _refusal(text, "mmap_size", body.mmap_size, there) from None
        self._bytes = mapped[skip : skip + body.mmap_size]
        self._address = mapping.start_of(mapped) + skip

    def part(self, index: int, layout: Layout) -> Fields | None:
        """The part of a queue; None if the area is not for it: it is not tracked. QueueBroken if there is no room for it."""
        if index >= self.num_queues:
            return None
        size = layout.size(self.queue_size)
        start = index * size
        if start + size > self._bytes.nbytes:
            there = self._bytes.nbytes
            raise QueueBroken(f"the inflight area has {there:#x} bytes, the part of ring {index} ends at {start + size:#x}")
        return Fields(self._bytes[start : start + size], self._address + start, self.queue_size, fragile=self._fragile)

    def forget(self) -> None:
        """Make it as new: the device was reset, nothing is in progress. What is gone needs no such thing."""
        for layout in (SPLIT, PACKED):
            for fields in self._parts(layout):
                try:
                    fields.put(VERSION_AT, 2, 0)
                except QueueBroken:
                    return

    def _parts(self, layout: Layout) -> Iterator[Fields]:
        for index in range(min(self.num_queues, self._bytes.nbytes // layout.size(self.queue_size))):
            if fields := self.part(index, layout):
                yield fields


def area_size(layout: Layout, num_queues: int, queue_size: int) -> int:
    """Bytes of an area."""
    return num_queues * layout.size(queue_size)


def new_area(num_queues: int, queue_size: int) -> tuple[Inflight, OwnedFd]:
    """A new area, all zeroes, with room for either format: what GET_INFLIGHT_FD answers, and the fd. Raises OSError."""
    size = area_size(PACKED, num_queues, queue_size)
    return Inflight(size, 0, num_queues, queue_size), mapping.sealed_file("vhostuser-inflight", size)


def _refusal(text: str, field: str, value: int, limit: int) -> RemoteProtocolError:
    return RemoteProtocolError(text, request="SET_INFLIGHT_FD", field=field, value=value, limit=limit)
