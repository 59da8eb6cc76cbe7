"""Where a ring lies in guest memory, and the device half that works on it there: compiled, or Python's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from . import _native
from .errors import MemoryFault, QueueBroken
from .memory.fragile import FragilePackedQueue, FragileQueue, RingPart
from .memory.guest import GuestMemory
from .memory.inflight import PACKED, SPLIT, Fields, InflightArea
from .protocol.payloads import VringAddr
from .tracked_packed import TrackedPacked, recover_packed
from .tracked_split import TrackedSplit, recover_split
from .virtio.formats import ring_format
from .virtio.numbers import DESCRIPTOR_SIZE, Feature
from .virtio.packed import PackedQueue, read_base, whole_base, write_base
from .virtio.split import SplitQueue

if TYPE_CHECKING:
    from ._native.ring import SplitRing
    from ._native.walk import DeviceRing

LaidQueue: TypeAlias = "SplitQueue | PackedQueue | DeviceRing"
DeviceQueue: TypeAlias = "LaidQueue | TrackedSplit | TrackedPacked"
LARGEST_INDEX: Final = 0xFFFF
Part = TypeVar("Part", memoryview, RingPart)


def queue_features() -> int:
    """Feature bits that only the compiled half can offer, as a mask: EVENT_IDX needs fences."""
    return 1 << Feature.RING_EVENT_IDX if _native.accelerated else 0


def part_sizes(size: int, features: int) -> tuple[int, int, int]:
    """Bytes of a ring's descriptors, of what the driver writes and of what the device writes.

    EVENT_IDX adds a field to both of the latter in a split ring.
    """
    ring = ring_format(features)
    descriptors, driver, device = ring.sizes(size)
    extra = 2 if _has(features, Feature.RING_EVENT_IDX) and not ring.is_packed else 0
    return descriptors, driver + extra, device + extra


def new_device_queue(
    size: int,
    descriptors: memoryview,
    available: memoryview,
    used: memoryview,
    memory: GuestMemory,
    features: int,
    *,
    base: int,
) -> LaidQueue:
    """A queue over parts of `part_sizes`, none of them fragile, under the features (a mask) that were acknowledged."""
    ring, indirect = ring_format(features), _has(features, Feature.RING_INDIRECT_DESC)
    if not _native.accelerated:
        return ring.device(size, descriptors, available, used, memory, base=base, indirect=indirect)
    table, event_idx = _native.walk.RegionTable(memory.solid), _has(features, Feature.RING_EVENT_IDX)
    compiled = _native.packed.PackedRing if ring.is_packed else _native.ring.SplitRing
    return compiled(size, descriptors, available, used, memory, table, base=base, indirect=indirect, event_idx=event_idx)


def _compiled_split(queue: DeviceQueue) -> SplitRing | None:
    return queue if _native.accelerated and isinstance(queue, _native.ring.SplitRing) else None


def _has(features: int, bit: Feature) -> bool:
    return bool(features >> bit & 1)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a ring lies in a memory table, and what was agreed about it ("SET_VRING_ADDR")."""

    index: int
    size: int
    addresses: VringAddr
    memory: GuestMemory
    features: int
    """What the front-end has acknowledged, a mask."""
    inflight: InflightArea | None = None
    """Where the requests in progress are tracked, if they are."""

    @property
    def is_packed(self) -> bool:
        """The device writes into the descriptors, too."""
        return ring_format(self.features).is_packed

    @property
    def in_order(self) -> bool:
        """Requests are given back in the order in which they were taken ("In-order use of descriptors")."""
        return _has(self.features, Feature.IN_ORDER)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """`part_sizes` of the ring."""
        return part_sizes(self.size, self.features)

    def check(self) -> None:
        """QueueBroken if its parts are not there, not writable where they must be, or where no such ring can be."""
        descriptors, _, used = self._parts(self.memory.ring_part)
        if used.readonly:
            raise QueueBroken(f"the used ring of ring {self.index} is in read-only memory")
        if self.is_packed and descriptors.readonly:
            raise QueueBroken(f"the descriptor ring of ring {self.index} is in read-only memory")
        if not self.is_packed and self.size & (self.size - 1):
            raise QueueBroken(f"split ring {self.index} has {self.size} entries, which is no power of two")

    @property
    def fields(self) -> Fields | None:
        """The ring's part of the inflight area."""
        return self.inflight.part(self.index, PACKED if self.is_packed else SPLIT) if self.inflight else None

    def begin(self, base: int | None) -> DeviceQueue:
        """The queue laid there; it goes on at `base` with what is in progress, or begins.

        QueueBroken if memory is gone, if there is no such base, or if the inflight area is none of this ring.
        """
        first = ring_format(self.features).first_base if base is None else base
        if self.is_packed:
            return self._packed(whole_base(first))
        if first > LARGEST_INDEX:
            raise QueueBroken(f"base {first:#x} is none of split ring {self.index}")
        return self._split(fields, first) if (fields := self.fields) else self._queue(first)

    def go_on(self, queue: DeviceQueue) -> DeviceQueue:
        """The queue, all of whose requests are published, laid there from elsewhere. QueueBroken as `begin`."""
        laid = self._queue(queue.base)
        if isinstance(queue, TrackedPacked):
            queue.lay(laid, self._look)
            return queue
        tracked = queue if isinstance(queue, TrackedSplit) else _compiled_split(queue)
        books = tracked.books() if tracked else None
        return self._tracked(laid, *books) if books else laid

    def base_of(self, queue: DeviceQueue) -> int:
        """Where the queue, which is stopped, goes on: behind all that it took.

        But in order it goes on at the first request that it has not given back, unless the inflight area has that: or what
        is given back next would say that it was done, too. QueueBroken if memory is gone.
        """
        if not self.in_order or self.fields:
            return queue.base
        shown = queue.base >> 16 if self.is_packed else self._used_index()
        return shown | shown << 16 if self.is_packed else shown

    def _split(self, fields: Fields, base: int) -> DeviceQueue:
        index = self._used_index()
        recovered = recover_split(fields, self.size, index)
        queue = self._queue((index + len(recovered.entries)) & LARGEST_INDEX if recovered.entries else base)
        return self._tracked(queue, recovered.counter, recovered.entries)

    def _tracked(self, queue: LaidQueue, counter: int, entries: Sequence[int]) -> DeviceQueue:
        """A split queue with the books of its part of the area: compiled where both are."""
        fields = self.fields
        if fields is None:
            return queue
        if fields.solid is not None and (compiled := _compiled_split(queue)):
            compiled.track(fields.solid, counter, entries)
            return compiled
        return TrackedSplit(queue, fields, self._used_index(), counter, entries)

    def _used_index(self) -> int:
        _, _, used = self._parts(self.memory.ring_part)
        used.refresh()
        return int.from_bytes(used.copy[2:4], "little")

    def _packed(self, base: int) -> DeviceQueue:
        if not (fields := self.fields):
            return self._queue(base)
        ring, _, _ = self._parts(self.memory.ring_part)
        recovered, available, used = recover_packed(fields, self.size, ring, read_base(base, self.size)[1])
        return TrackedPacked(self._queue(write_base(available, used, self.size)), fields, self._look, recovered)

    def _look(self, slot: int) -> bytes:
        """The bytes of a packed ring's descriptor."""
        part = self.memory.ring_part(self.addresses.descriptor + slot * DESCRIPTOR_SIZE, DESCRIPTOR_SIZE)
        part.refresh()
        return bytes(part.copy)

    def _queue(self, first: int) -> LaidQueue:
        parts = self._parts(self.memory.ring_part)
        if not (self.memory.fragile if _native.accelerated else any(part.fragile for part in parts)):
            views = self._parts(self.memory.at_user)
            return new_device_queue(self.size, *views, self.memory, self.features, base=first)
        fragile = FragilePackedQueue if self.is_packed else FragileQueue
        indirect = _has(self.features, Feature.RING_INDIRECT_DESC)
        queue = fragile(self.size, *parts, self.memory, base=first, indirect=indirect)
        return self._guarded(queue, first) if _native.accelerated else queue

    def _guarded(self, queue: FragileQueue | FragilePackedQueue, first: int) -> DeviceRing:
        """A compiled queue over memory that may shrink, and `queue` for what is not plain."""
        event_idx = _has(self.features, Feature.RING_EVENT_IDX)
        views, table = self._parts(self.memory.bare_at_user), _native.walk.RegionTable(self.memory.shown)
        if isinstance(queue, FragilePackedQueue):
            return _native.packed.PackedRing(
                self.size, *views, self.memory, table, base=first, indirect=queue.indirect, event_idx=event_idx, pure=queue
            )
        return _native.ring.SplitRing(
            self.size, *views, self.memory, table, base=first, indirect=queue.indirect, event_idx=event_idx, pure=queue
        )

    def written_views(self) -> list[memoryview]:
        """What the device writes besides the used part, as the dirty log can place it: a packed ring's descriptors."""
        return [self.memory.ring_part(self.addresses.descriptor, self.sizes[0]).copy] if self.is_packed else []

    def _parts(self, look_up: Callable[[int, int], Part]) -> tuple[Part, Part, Part]:
        sizes, at = self.sizes, self.addresses
        try:
            return look_up(at.descriptor, sizes[0]), look_up(at.available, sizes[1]), look_up(at.used, sizes[2])
        except MemoryFault as error:
            raise QueueBroken(f"ring {self.index} is outside guest memory: {error}") from None
