"""A split ring for compiled code that works on memory which its file may lose, and that survives this.

Python works on such a ring in a copy (`memory.fragile`). Where compiled code has taken requests meanwhile, that goes on from
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _native
from .errors import MemoryFault, QueueBroken
from .memory.fragile import FragileQueue
from .virtio.numbers import Feature
from .virtqueue import Place

if TYPE_CHECKING:
    from ._native.ring import SplitRing


def bare_ring(place: Place, queue: FragileQueue) -> SplitRing:
    """The queue in the memory itself. QueueBroken if it is not there any more."""
    sizes, at, memory = place.sizes, place.addresses, place.memory
    descriptors, available, used = (memoryview(bytearray(size)) for size in sizes)
    used[2:4] = queue.used.to_bytes(2, "little")
    ring = _native.ring.SplitRing(
        queue.size,
        descriptors,
        available,
        used,
        memory,
        _native.ring.RegionTable(memory.bare),
        base=queue.base,
        indirect=queue.indirect,
        event_idx=bool(place.features >> Feature.RING_EVENT_IDX & 1),
    )
    try:
        starts = (at.descriptor, at.available, at.used)
        parts = [memory.bare_at_user(start, size) for start, size in zip(starts, sizes, strict=True)]
    except MemoryFault as error:
        raise QueueBroken(f"ring {place.index} is outside guest memory: {error}") from None
    _native.block.relay(ring, parts[0], parts[1], parts[2])
    return ring


def catch_up(queue: FragileQueue, ring: SplitRing) -> None:
    """Let the queue go on where compiled code is. QueueBroken if memory is gone."""
    queue.go_on(*_native.block.progress(ring))
