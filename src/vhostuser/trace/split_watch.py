"""A split ring as a bystander watches it: what was put into the available ring and into the used ring since the last look.

Neither side waits for us. What was given back between two looks may have been overwritten by the next request: so a look
reads both rings and the descriptors until the available index stands still meanwhile, and of a request that was given back
it takes nothing for granted that a later one lies over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from ..errors import QueueBroken
from ..virtio.split import AVAIL_HEADER, USED_ELEMENT, USED_HEADER
from .flights import Flights
from .ring_chain import STEPS, Overlay, SeenChain, split_chain
from .ring_memory import Part, RingMemory
from .ring_place import RingPlace

TRIES: Final = 3
"""How often a look begins again because the driver went on meanwhile."""
_INDICES: Final = 0xFFFF
_ELEMENT: Final = Struct("<II")


class _Rings(NamedTuple):
    """Copies of a ring's parts, and both indices."""

    table: bytes
    available: bytes
    used: bytes
    offered: int
    given: int

    def head(self, position: int, size: int) -> int:
        """The head at a position of the available ring."""
        return _u16(self.available, AVAIL_HEADER + 2 * (position % size))

    def entry(self, position: int, size: int) -> tuple[int, int]:
        """Head and bytes written at a position of the used ring."""
        start = USED_HEADER + USED_ELEMENT * (position % size)
        head, written = _ELEMENT.unpack_from(self.used, start)
        return head, written


class _Seen(NamedTuple):
    """One entry of the available ring: late if it was given back already; without a chain if that was overwritten."""

    head: int
    late: bool
    chain: SeenChain | QueueBroken | None = None


class SplitWatch:
    """One split ring; QueueBroken if it can be none. `flights` gathers what is seen, `lost` counts what went by unseen."""

    def __init__(self, place: RingPlace, memory: RingMemory) -> None:
        self.place, self.lost = place, 0
        base = place.base or 0
        if base > _INDICES or place.size & (place.size - 1):
            raise QueueBroken(f"no split ring has {place.size} entries and base {base:#x}")
        self._lay(memory)
        behind = (base - self._index(self._used)) & _INDICES
        unknown = behind if behind <= place.size else 0
        self._offered, self._given = base, (base - unknown) & _INDICES
        self.flights = Flights(place.connection, place.queue, 2 * place.size, unknown)

    def move(self, place: RingPlace) -> None:
        """It lies elsewhere now, and goes on."""
        self.place, self._memory = place, RingMemory()

    def look(self, memory: RingMemory, now: int) -> None:
        """What happened since the last look. QueueBroken, or MemoryFault, if the ring can't be followed any more."""
        if memory is not self._memory:
            self._lay(memory)
        if (self._index(self._available), self._index(self._used)) == (self._offered, self._given):
            return
        rings = self._copy()
        self._check(rings)
        skipped = max(0, self._new(rings.offered) - self.place.size)
        if skipped or (rings.given - self._given) & _INDICES > self.place.size:
            self._skip(rings, skipped)
        self._take(rings, now)
        self._give(rings, now)

    def _lay(self, memory: RingMemory) -> None:
        self._descriptors, self._available, self._used = self.place.parts(memory)
        self._memory = memory

    def _index(self, part: Part) -> int:
        """The index of the available or the used ring, as it is now."""
        return _u16(part.read(2, 2), 0)

    def _new(self, offered: int) -> int:
        return (offered - self._offered) & _INDICES

    def _copy(self) -> _Rings:
        """All of the ring. The used ring is read last: it has nothing then that the available ring had not."""
        for _ in range(TRIES):
            available, table, used = self._available.read(), self._descriptors.read(), self._used.read()
            offered = _u16(available, 2)
            if self._index(self._available) == offered:
                break
        given = _u16(used, 2)
        if 0 < (given - offered) & _INDICES <= self.place.size:  # it was offered and given back since
            given = offered
        return _Rings(table, available, used, offered, given)

    def _check(self, rings: _Rings) -> None:
        """What the device has is at most what the queue holds ("The Virtqueue Available Ring")."""
        waiting = (rings.offered - rings.given) & _INDICES
        if waiting > self.place.size:
            text = f"available index {rings.offered} is {waiting} ahead of used index {rings.given}"
            raise QueueBroken(f"{text}, the queue has {self.place.size} entries")

    def _skip(self, rings: _Rings, skipped: int) -> None:
        """More happened than a ring holds: leave out what was overwritten."""
        self.lost += skipped
        self.flights.lost += skipped + len(self.flights.forget())
        self._offered = (self._offered + skipped) & _INDICES
        more = max(0, ((rings.given - self._given) & _INDICES) - self.place.size)
        self._given = (self._given + more) & _INDICES

    def _take(self, rings: _Rings, now: int) -> None:
        """What the driver offered, in its order."""
        for seen in self._walked(rings, self._entries(rings)):
            if isinstance(seen.chain, QueueBroken):
                raise seen.chain
            self.lost += seen.chain is None
            self.flights.offer(seen.head, seen.chain, now, self._memory, late=seen.late)
        self._offered = rings.offered

    def _entries(self, rings: _Rings) -> list[_Seen]:
        """The new entries of the available ring, and which of them the used ring has already."""
        size = self.place.size
        positions = [(self._offered + step) & _INDICES for step in range(self._new(rings.offered))]
        if self.place.in_order:
            done = (rings.given - self._offered) & _INDICES
            done = done if done <= size else 0
            return [_Seen(rings.head(position, size), step < done) for step, position in enumerate(positions)]
        gone = Counter(head for head, _ in self._used_entries(rings))
        for head in gone:
            gone[head] -= self.flights.count(head)
        found = []
        for position in positions:
            head = rings.head(position, size)
            found.append(_Seen(head, gone[head] > 0))
            gone[head] -= 1
        return found

    def _walked(self, rings: _Rings, entries: Sequence[_Seen]) -> Sequence[_Seen]:
        """The same with their chains, the newest of which are what the memory holds."""
        overlay, left, found = Overlay(), STEPS, list[_Seen]()
        some_late = any(seen.late for seen in entries)
        for seen in reversed(entries):
            chain = self._chain(rings, seen) if left > 0 else None
            if isinstance(chain, SeenChain):
                left -= chain.steps
                if seen.late and overlay.hides(chain):
                    chain = None
                elif some_late:
                    overlay.add(chain)
            found.append(seen._replace(chain=chain))
        return found[::-1]

    def _chain(self, rings: _Rings, seen: _Seen) -> SeenChain | QueueBroken | None:
        """The chain of an entry. What is none is a fault, but in a request that was given back: its place is free again."""
        try:
            return split_chain(rings.table, self.place.size, seen.head, self._memory.read)
        except QueueBroken as error:
            return None if seen.late else error

    def _give(self, rings: _Rings, now: int) -> None:
        """What the device gave back, in its order."""
        if self.place.in_order:
            self._give_batches(rings, now)
            return
        for head, written in self._used_entries(rings):
            if head >= self.place.size:
                raise QueueBroken(f"the device gave back chain {head}, the queue has {self.place.size}")
            self.flights.give(head, written, now, self._memory)
        self._given = rings.given

    def _used_entries(self, rings: _Rings) -> Iterator[tuple[int, int]]:
        for step in range((rings.given - self._given) & _INDICES):
            yield rings.entry(self._given + step, self.place.size)

    def _give_batches(self, rings: _Rings, now: int) -> None:
        """The same where one entry ends a batch, and stands where that of its first request would."""
        while left := (rings.given - self._given) & _INDICES:
            head, written = rings.entry(self._given, self.place.size)
            count = len(self.flights.batch(head)) or 1
            if head >= self.place.size or count > left:
                raise QueueBroken(f"the device gave back chain {head}, which ends a batch of {count}, as one of {left}")
            self.flights.give_all(head, written, now, self._memory)
            self._given = (self._given + count) & _INDICES


def _u16(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 2], "little")
