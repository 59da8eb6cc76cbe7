"""Where a ring lies and how it goes on, as the messages said it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MemoryFault, QueueBroken
from ..protocol.payloads import VringAddr
from ..virtio.formats import ring_format
from ..virtio.numbers import Feature
from .ring_memory import Part, RingMemory

Parts = tuple[Part, Part, Part]


@dataclass(frozen=True, slots=True)
class RingPlace:
    """What was said about a ring until it started."""

    connection: int
    queue: int
    size: int
    addresses: VringAddr
    base: int | None
    features: int
    """What was acknowledged, a mask."""
    by_guest: bool
    """Its addresses are the guest's ("GPA_ADDRESSES")."""

    @property
    def is_packed(self) -> bool:
        """The device writes into the descriptors, too."""
        return ring_format(self.features).is_packed

    @property
    def in_order(self) -> bool:
        """One used entry may stand for several requests ("In-order use of descriptors")."""
        return bool(self.features >> Feature.IN_ORDER & 1)

    def parts(self, memory: RingMemory) -> Parts:
        """Descriptors, what the driver writes and what the device writes. QueueBroken if they are not in that memory."""
        sizes, at = ring_format(self.features).sizes(self.size), self.addresses
        places = zip((at.descriptor, at.available, at.used), sizes, strict=True)
        try:
            first, second, third = (self._part(memory, *each) for each in places)
        except MemoryFault as error:
            raise QueueBroken(f"it is outside guest memory: {error}{self._advice()}") from None
        return first, second, third

    def _part(self, memory: RingMemory, addr: int, len: int) -> Part:
        """A part of it. Bit 21 once meant shared memory: then addresses are the front-end's after all."""
        if self.by_guest:
            try:
                return memory.part(addr, len, by_guest=True)
            except MemoryFault:
                pass
        return memory.part(addr, len, by_guest=False)

    def _advice(self) -> str:
        translated = self.features >> Feature.ACCESS_PLATFORM & 1
        return "; addresses that an IOMMU translates can't be followed" if translated else ""
