"""A packed ring as a bystander watches it: what was made available and what was used since the last look.

A used descriptor takes the place of one that was available: a request that came and went between two looks has left its id
and nothing else. How many descriptors it took up can be seen only of those behind it that nobody wrote over.
"""

from __future__ import annotations

from typing import Final

from ..errors import QueueBroken
from ..virtio.numbers import DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, DESCRIPTOR_SIZE
from ..virtio.packed import FIRST_BASE, available_flags, read_base, used_flags, whole_base
from .event import Buffer
from .flights import Flight, Flights
from .ring_chain import DESCRIPTOR, STEPS, SeenChain, packed_table
from .ring_memory import RingMemory
from .ring_place import RingPlace

_STATE: Final = DESC_AVAIL | DESC_USED
_FLAGS_AT: Final = 14


class PackedWatch:
    """One packed ring; QueueBroken if it can be none. `flights` gathers what is seen, `lost` counts what went by unseen."""

    def __init__(self, place: RingPlace, memory: RingMemory) -> None:
        self.place, self.lost = place, 0
        base = FIRST_BASE if place.base is None else place.base
        self._available, self._used = read_base(whole_base(base), place.size)
        self._left = 0
        """What one look may still follow."""
        self._known: dict[SeenChain, Flight] = {}
        """What was in progress before the ring was lost from sight."""
        self._lay(memory)
        unknown = (self._available - self._used) % (2 * place.size)
        self.flights = Flights(place.connection, place.queue, 2 * place.size, unknown)

    def move(self, place: RingPlace) -> None:
        """It lies elsewhere now, and goes on."""
        self.place, self._memory = place, RingMemory()

    def look(self, memory: RingMemory, now: int) -> None:
        """What happened since the last look. QueueBroken, or MemoryFault, if the ring can't be followed any more."""
        if memory is not self._memory:
            self._lay(memory)
        if not self._has_news():
            return
        ring = self._descriptors.read()
        if self._was_overrun(ring):
            self._find_again(ring)
        self._left = STEPS
        before = None
        while before != (self._available, self._used) and self._left > 0:
            before = self._available, self._used
            self._take(ring, now)
            self._give(ring, now)
        self._known.clear()

    def _lay(self, memory: RingMemory) -> None:
        self._descriptors, _, _ = self.place.parts(memory)
        self._memory = memory

    def _has_news(self) -> bool:
        """The driver or the device wrote to the descriptor that each would write to next."""
        size = self.place.size
        if bool(self._now(self._available) & DESC_AVAIL) == (self._available < size):
            return True
        return self._available != self._used and self._now(self._used) != available_flags(self._used, size)

    def _now(self, position: int) -> int:
        """AVAIL and USED of a descriptor, as they are now."""
        start = position % self.place.size * DESCRIPTOR_SIZE + _FLAGS_AT
        return int.from_bytes(self._descriptors.read(start, 2), "little") & _STATE

    def _at(self, ring: bytes, position: int) -> tuple[int, int, int, int]:
        """Address, length, id and flags of the descriptor at a position."""
        address, length, buffer_id, flags = DESCRIPTOR.unpack_from(ring, position % self.place.size * DESCRIPTOR_SIZE)
        return address, length, buffer_id, flags

    def _is_available(self, ring: bytes, position: int) -> bool:
        return self._at(ring, position)[3] & _STATE == available_flags(position, self.place.size)

    def _after(self, position: int, count: int = 1) -> int:
        return (position + count) % (2 * self.place.size)

    def _room(self) -> int:
        """Descriptors that the driver may still make available."""
        return self.place.size - (self._available - self._used) % (2 * self.place.size)

    def _take(self, ring: bytes, now: int) -> None:
        """What the driver offered, in its order."""
        while self._left > 0 and self._room() > 0 and self._is_available(ring, self._available):
            chain = self._chain(ring, self._available)
            if chain is None:
                return
            self._left -= chain.steps
            self._available = self._after(self._available, len(chain.slots))
            if known := self._known.pop(chain, None):
                self.flights.resume(known)
            else:
                self.flights.offer(chain.head, chain, now, self._memory, late=False)

    def _chain(self, ring: bytes, start: int) -> SeenChain | None:
        """The chain at a position; None if the ring changes under us. QueueBroken if it is none."""
        try:
            return self._walk(ring, start)
        except QueueBroken:
            if self._descriptors.read() == ring:
                raise
            return None

    def _walk(self, ring: bytes, start: int) -> SeenChain:
        size, position, buffers, slots = self.place.size, start, list[Buffer](), set[int]()
        for _ in range(self._room()):
            if not self._is_available(ring, position):
                raise QueueBroken(f"a chain wants descriptor {position % size}, which is not available")
            address, length, buffer_id, flags = self._at(ring, position)
            slots.add(position % size)
            if flags & DESC_INDIRECT:
                if buffers:
                    raise QueueBroken("an indirect descriptor follows a direct one")
                return packed_table(buffer_id, position % size, (address, length, flags), size, self._memory.read)
            buffers.append(Buffer(address, length, bool(flags & DESC_WRITE)))
            if not flags & DESC_NEXT:
                return SeenChain(buffer_id, tuple(buffers), frozenset(slots))
            position = self._after(position)
        raise QueueBroken(f"a chain at descriptor {start % size} is longer than the queue has room for")

    def _give(self, ring: bytes, now: int) -> None:
        """What the device gave back, in its order."""
        for _ in range(self.place.size):
            _, written, buffer_id, flags = self._at(ring, self._used)
            if flags & _STATE != used_flags(self._used, self.place.size):
                return
            self._left -= 1
            written = written if flags & DESC_WRITE else 0
            if self.flights.count(buffer_id):
                self._give_known(buffer_id, written, now)
            else:
                self._give_unknown(ring, buffer_id, written, now)

    def _give_known(self, buffer_id: int, written: int, now: int) -> None:
        in_order, flights = self.place.in_order, self.flights
        entries = flights.entries(flights.batch(buffer_id) if in_order else flights.oldest(buffer_id))
        (flights.give_all if in_order else flights.give)(buffer_id, written, now, self._memory)
        self._used = self._after(self._used, entries)

    def _give_unknown(self, ring: bytes, buffer_id: int, written: int, now: int) -> None:
        """A request was used that was not seen to come: before anybody looked, or between two looks."""
        entries = self._left_behind(ring, self._used, buffer_id)
        had = (self._available - self._used) % (2 * self.place.size)
        if had:
            self.flights.give(buffer_id, written, now, self._memory)
        else:
            self.lost += 1
        self._used = self._after(self._used, entries)
        if entries > had:
            self._available = self._used

    def _was_overrun(self, ring: bytes) -> bool:
        """The driver has gone round so far that it wrote over descriptors which we have not seen used."""
        return self._available != self._used and self._round(ring, self._used) != (self._used < self.place.size)

    def _round(self, ring: bytes, position: int) -> bool:
        """The driver's wrap counter when it wrote a descriptor last."""
        return bool(self._at(ring, position)[3] & DESC_AVAIL)

    def _find_again(self, ring: bytes) -> None:
        """Go on where both sides are now. What the driver wrote in this round ends where its wrap counter changes.

        How often they went round cannot be seen, so it counts as one request that was lost. One that is still in progress
        goes on as it was.
        """
        size, wrap = self.place.size, self._round(ring, 0)
        end = next((slot for slot in range(size) if self._round(ring, slot) != wrap), size)
        available = (end if wrap else end + size) % (2 * size)
        used = available
        for _ in range(size):
            before = (used - 1) % (2 * size)
            flags = self._at(ring, before)[3]
            if flags & _STATE == used_flags(before, size):
                used = self._after(before, self._left_behind(ring, before, self._at(ring, before)[2]))
                break
            used = before
        self.lost += 1
        self._known = self.flights.forget()
        self._available = self._used = used

    def _left_behind(self, ring: bytes, start: int, buffer_id: int) -> int:
        """How many descriptors the used one at `start` stands for: those behind it, to the last one, have its id."""
        position = self._after(start)
        for count in range(2, self.place.size):
            _, _, its_id, flags = self._at(ring, position)
            if not self._is_available(ring, position) or flags & DESC_INDIRECT:
                return 1
            if not flags & DESC_NEXT:
                return count if its_id == buffer_id else 1
            position = self._after(position)
        return 1
