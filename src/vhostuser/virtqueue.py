"""The device half of a queue that is live, compiled or Python's, and what only the compiled one can offer: EVENT_IDX."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from . import _native
from .memory.guest import GuestMemory
from .virtio.numbers import Feature
from .virtio.split import SplitQueue, ring_sizes

if TYPE_CHECKING:
    from ._native.ring import SplitRing

DeviceQueue: TypeAlias = "SplitQueue | SplitRing"


def queue_features() -> int:
    """Feature bits that depend on which half is live, as a mask."""
    return 1 << Feature.RING_EVENT_IDX if _native.accelerated else 0


def part_sizes(size: int, features: int) -> tuple[int, int, int]:
    """Bytes of the descriptor table, the available ring and the used ring; EVENT_IDX adds a field to each ring."""
    descriptors, available, used = ring_sizes(size)
    extra = 2 * _has(features, Feature.RING_EVENT_IDX)
    return descriptors, available + extra, used + extra


def new_device_queue(
    size: int,
    descriptors: memoryview,
    available: memoryview,
    used: memoryview,
    memory: GuestMemory,
    features: int,
    *,
    base: int,
) -> DeviceQueue:
    """A queue over parts of `part_sizes`, under the features (a mask) that were acknowledged."""
    indirect = _has(features, Feature.RING_INDIRECT_DESC)
    if not _native.accelerated:
        return SplitQueue(size, descriptors, available, used, memory, base=base, indirect=indirect)
    table = _native.ring.RegionTable([(region.guest_addr, region.view) for region in memory.regions])
    event_idx = _has(features, Feature.RING_EVENT_IDX)
    return _native.ring.SplitRing(
        size, descriptors, available, used, memory, table, base=base, indirect=indirect, event_idx=event_idx
    )


def _has(features: int, bit: Feature) -> bool:
    return bool(features >> bit & 1)
