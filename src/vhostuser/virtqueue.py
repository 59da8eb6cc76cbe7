"""Where a ring lies in guest memory, and the device half that works on it there: compiled, or Python's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from . import _native
from .errors import MemoryFault, QueueBroken
from .memory.fragile import FragileQueue, RingPart
from .memory.guest import GuestMemory
from .protocol.payloads import VringAddr
from .virtio.formats import ring_format
from .virtio.numbers import Feature
from .virtio.packed import PackedQueue
from .virtio.split import SplitQueue

if TYPE_CHECKING:
    from ._native.ring import SplitRing

DeviceQueue: TypeAlias = "SplitQueue | PackedQueue | SplitRing"
Part = TypeVar("Part", memoryview, RingPart)


def queue_features() -> int:
    """Feature bits that only the compiled half can offer, as a mask: EVENT_IDX needs fences."""
    return 1 << Feature.RING_EVENT_IDX if _native.accelerated else 0


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a ring lies in a memory table, and what was agreed about it ("SET_VRING_ADDR")."""

    index: int
    size: int
    addresses: VringAddr
    memory: GuestMemory
    features: int
    """What the front-end has acknowledged, a mask."""

    @property
    def is_packed(self) -> bool:
        """The device writes into the descriptors, too."""
        return ring_format(self.features).is_packed

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of the descriptors, of what the driver writes and of what the device writes."""
        descriptors, driver, device = ring_format(self.features).sizes(self.size)
        extra = 0 if self.is_packed or not self._has(Feature.RING_EVENT_IDX) else 2
        return descriptors, driver + extra, device + extra

    def check(self) -> None:
        """QueueBroken if its parts are not there, not writable where they must be, or where no such ring can be."""
        descriptors, _, used = parts = self._parts(self.memory.ring_part)
        if used.readonly:
            raise QueueBroken(f"the used ring of ring {self.index} is in read-only memory")
        if self.is_packed and descriptors.readonly:
            raise QueueBroken(f"the descriptor ring of ring {self.index} is in read-only memory")
        if self.is_packed and any(part.fragile for part in parts):
            raise QueueBroken(f"packed ring {self.index} is in memory whose file may shrink: seal it, or use split rings")

    def queue(self, base: int | None) -> DeviceQueue:
        """The queue laid there; it goes on at `base`, or begins. QueueBroken if memory is gone, or there is no such base."""
        ring = ring_format(self.features)
        first = ring.first_base if base is None else base
        indirect, event_idx = self._has(Feature.RING_INDIRECT_DESC), self._has(Feature.RING_EVENT_IDX)
        parts = self._parts(self.memory.ring_part)
        if any(part.fragile for part in parts):
            return FragileQueue(self.size, *parts, self.memory, base=first, indirect=indirect, event_idx=event_idx)
        views = self._parts(self.memory.at_user)
        if _native.accelerated and not ring.is_packed:
            table = _native.ring.RegionTable(self.memory.solid)
            return _native.ring.SplitRing(
                self.size, *views, self.memory, table, base=first, indirect=indirect, event_idx=event_idx
            )
        return ring.device(self.size, *views, self.memory, base=first, indirect=indirect)

    def written_views(self) -> list[memoryview]:
        """What the device writes besides the used part, in solid memory: a packed ring's descriptors."""
        return [self.memory.at_user(self.addresses.descriptor, self.sizes[0])] if self.is_packed else []

    def _parts(self, look_up: Callable[[int, int], Part]) -> tuple[Part, Part, Part]:
        sizes, at = self.sizes, self.addresses
        try:
            return look_up(at.descriptor, sizes[0]), look_up(at.available, sizes[1]), look_up(at.used, sizes[2])
        except MemoryFault as error:
            raise QueueBroken(f"ring {self.index} is outside guest memory: {error}") from None

    def _has(self, bit: Feature) -> bool:
        return bool(self.features >> bit & 1)
