"""The two formats of a virtqueue, and which of them the negotiated features mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from .driver import DriverQueue
from .numbers import Feature
from .packed import FIRST_BASE, PackedQueue, packed_sizes
from .packed_driver import PackedDriverQueue
from .split import SplitQueue, ring_sizes

DeviceQueue: TypeAlias = SplitQueue | PackedQueue
DriverHalf: TypeAlias = DriverQueue | PackedDriverQueue


@dataclass(frozen=True, slots=True)
class Format:
    """One format: both halves of a queue, and what both need to know before there is one."""

    device: type[SplitQueue] | type[PackedQueue]
    driver: type[DriverQueue] | type[PackedDriverQueue]
    sizes: Callable[[int], tuple[int, int, int]]
    """Bytes of the three parts of a ring, by its size. They are the descriptors, what the driver writes, and the device."""
    first_base: int
    """The base of a ring that begins."""
    is_packed: bool
    """The device writes into the descriptors, too."""


SPLIT: Final = Format(SplitQueue, DriverQueue, ring_sizes, 0, False)
PACKED: Final = Format(PackedQueue, PackedDriverQueue, packed_sizes, FIRST_BASE, True)


def ring_format(features: int) -> Format:
    """The format of every ring of a device, by what was acknowledged ("Virtqueues")."""
    return PACKED if features >> Feature.RING_PACKED & 1 else SPLIT


def new_driver(features: int, size: int, descriptors: memoryview, available: memoryview, used: memoryview) -> DriverHalf:
    """The driver half of a queue over the parts of a ring, by what was acknowledged."""
    in_order = bool(features >> Feature.IN_ORDER & 1)
    return ring_format(features).driver(size, descriptors, available, used, in_order=in_order)
