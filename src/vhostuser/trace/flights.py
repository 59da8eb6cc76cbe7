"""The requests that a device has, as a bystander knows them: offered, and not seen to be given back.

A request that was given back is held until the next look: the driver may have used its memory for another one by then, of
any queue, and what was read there was perhaps that one's. What a newer request lies over is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from .event import START, Event, Offered, Used
from .places import Place, Places
from .ring_chain import SeenChain
from .ring_memory import RingMemory, first_bytes, last_byte

Kept = TypeVar("Kept", bound=Offered | Used)


@dataclass(frozen=True, slots=True)
class Flight:
    """A request in the device's hands; one without a chain came and was overwritten before it could be read."""

    head: int
    chain: SeenChain | None
    at: int
    """When it was seen to be offered."""
    number: int
    """Counted as they came."""
    late: bool
    """It was given back before it was seen."""

    @property
    def room(self) -> int:
        """Bytes that the device may write."""
        return sum(length for _, length in self.chain.writable) if self.chain else 0


class Flights:
    """The requests of one queue, in the order in which they came; `most` are kept, those that never end go first.

    `unknown` of them were with the device before anybody looked. What is to be said comes out of `settle`.
    """

    def __init__(self, connection: int, queue: int, most: int, unknown: int = 0) -> None:
        self.unknown, self.lost = unknown, 0
        """`lost` are those that came unseen, and may be given back."""
        self._connection, self._queue, self._most = connection, queue, most
        self._by_number: dict[int, Flight] = {}
        self._by_head: dict[int, deque[Flight]] = {}
        self._count = 0
        self._offered: list[Offered] = []
        self._fresh: list[Flight] = []
        self._given: list[tuple[Flight | None, Used]] = []
        self._held: list[tuple[Flight | None, Offered | Used]] = []

    def offer(self, head: int, chain: SeenChain | None, at: int, memory: RingMemory, *, late: bool) -> None:
        """A request was offered; nothing is said of one that could not be read."""
        flight = Flight(head, chain, at, self._count, late)
        self._count += 1
        self._by_number[flight.number] = flight
        self._by_head.setdefault(head, deque()).append(flight)
        if len(self._by_number) > self._most:
            self._drop(next(iter(self._by_number.values())))
        if chain:
            start = first_bytes(memory, chain.readable, START)
            self._offered.append(Offered(at, self._connection, self._queue, head, chain.buffers, start))
            self._fresh.append(flight)

    def give(self, head: int, written: int, at: int, memory: RingMemory) -> None:
        """A request was given back; nothing is said of what was lost."""
        waiting = self._by_head.get(head)
        if not waiting:
            self._give_unknown(Used(at, self._connection, self._queue, head, written))
            return
        flight = waiting[0]
        self._drop(flight)
        if flight.chain:
            after = -1 if flight.late else max(0, at - flight.at)
            start = first_bytes(memory, flight.chain.writable, START)
            end = last_byte(memory, flight.chain.writable)
            self._given.append((flight, Used(at, self._connection, self._queue, head, written, start, end, after)))

    def give_all(self, head: int, written: int, at: int, memory: RingMemory) -> None:
        """A batch was given back, in order, that ends with `head` ("In-order use of descriptors")."""
        for flight in self.batch(head)[:-1]:
            self.give(flight.head, flight.room, at, memory)
        self.give(head, written, at, memory)

    @property
    def fresh(self) -> list[Place]:
        """Where the requests lie that were offered since the last `settle`."""
        return [place for flight in self._fresh if flight.chain for place in flight.chain.places]

    def settle(self, others: Iterable[Place] = ()) -> list[Event]:
        """What there is to say after a look at all queues, in whose others requests came that lie at `others`.

        What was given back just now is held. So is what was offered after that, for it may have the same head, and all that
        was never seen in progress.
        """
        newer, elsewhere = Places(self.fresh), Places(others)
        newer.add(others)
        held: list[Event] = [_kept(flight, event, newer) for flight, event in self._held]
        offered = [(each, _kept(each, event, elsewhere)) for each, event in zip(self._fresh, self._offered, strict=True)]
        before = [(flight, _kept(flight, used, newer)) for flight, used in self._given if not _is_late(flight)]
        late = [(flight, _kept(flight, used, elsewhere)) for flight, used in self._given if _is_late(flight)]
        waits = bool(before) or any(map(_is_late, self._fresh))
        self._held = [*before, *(offered if waits else ()), *late]
        self._offered, self._fresh, self._given = [], [], []
        return held if waits else [*held, *(event for _, event in offered)]

    def flush(self) -> list[Event]:
        """All that there is to say."""
        return self.settle() + self.settle()

    def entries(self, flights: Iterable[Flight]) -> int:
        """How many descriptors of the ring requests take up."""
        return sum(len(flight.chain.slots) for flight in flights if flight.chain)

    def oldest(self, head: int) -> list[Flight]:
        """The oldest request of that name, if there is one."""
        return list(self._by_head.get(head, ()))[:1]

    def batch(self, head: int) -> list[Flight]:
        """The requests of a batch that ends with that one; none if it is unknown."""
        last = self.oldest(head)
        return [flight for flight in self._by_number.values() if flight.number <= last[0].number] if last else []

    def count(self, head: int) -> int:
        """How many requests of that name the device has."""
        return len(self._by_head.get(head, ()))

    def forget(self) -> dict[SeenChain, Flight]:
        """So much came and went unseen that nothing is known of the others any more: those that were in progress."""
        known = {flight.chain: flight for flight in self._by_number.values() if flight.chain}
        self._by_number.clear()
        self._by_head.clear()
        return known

    def resume(self, flight: Flight) -> None:
        """One of them is still in progress."""
        again = replace(flight, number=self._count)
        self._count += 1
        self._by_number[again.number] = again
        self._by_head.setdefault(again.head, deque()).append(again)

    def _give_unknown(self, used: Used) -> None:
        if self.lost:
            self.lost -= 1
            return
        self.unknown = max(0, self.unknown - 1)
        self._given.append((None, used))

    def _drop(self, flight: Flight) -> None:
        del self._by_number[flight.number]
        waiting = self._by_head[flight.head]
        waiting.popleft()
        if not waiting:
            del self._by_head[flight.head]


def _is_late(flight: Flight | None) -> bool:
    return flight is not None and flight.late


def _kept(flight: Flight | None, event: Kept, newer: Places) -> Kept:
    """What is known of a request that the device does not have any more, now that newer ones lie there.

    One that it still has is as it was: its memory is nobody else's.
    """
    if flight is None or flight.chain is None:
        return event
    if isinstance(event, Used) and newer.meet(flight.chain.writable):
        return replace(event, start=b"", end=b"")
    if isinstance(event, Offered) and flight.late and newer.meet(flight.chain.readable):
        return replace(event, start=b"")
    return event
