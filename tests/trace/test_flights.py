"""Requests in progress, and what is left out of those that newer ones may lie over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vhostuser.memory.mapping import map_file
from vhostuser.protocol.payloads import MemoryRegion
from vhostuser.testing import sparse_file
from vhostuser.trace.event import Buffer, Event, Offered, Used
from vhostuser.trace.flights import Flights
from vhostuser.trace.places import Place, Places
from vhostuser.trace.ring_chain import SeenChain
from vhostuser.trace.ring_memory import RingMemory, SeenRegion

SIZE = 4096
PLACES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8)


@given(PLACES, PLACES)
def test_places_are_the_union_of_their_ranges(ours: list[Place], theirs: list[Place]) -> None:
    covered = {byte for start, size in ours for byte in range(start, start + size)}
    asked = {byte for start, size in theirs for byte in range(start, start + size)}
    assert Places(ours).meet(theirs) is bool(covered & asked)


def chain(head: int, *, at: int, write: int) -> SeenChain:
    """A request of four bytes to read and four to write."""
    return SeenChain(head, (Buffer(at, 4, False), Buffer(write, 4, True)), frozenset((head,)))


def memory() -> RingMemory:
    """A page of guest memory at 0 that is full of ones."""
    with sparse_file(SIZE) as file:
        map_file(file.fileno(), SIZE, 0)[:] = b"\1" * SIZE
        return RingMemory([SeenRegion(MemoryRegion(0, SIZE, 0, 0), file.fileno())])


def starts(events: list[Event]) -> list[tuple[type, bytes]]:
    return [(type(each), each.start) for each in events if isinstance(each, Offered | Used)]


KNOWN = b"\1\1\1\1"


def test_a_request_in_progress_is_told_at_once() -> None:
    flights = Flights(0, 0, 8)
    flights.offer(0, chain(0, at=0, write=8), 1, memory(), late=False)
    assert starts(flights.settle([(0, 64)])) == [(Offered, KNOWN)], "its memory is nobody else's"
    flights.give(0, 4, 2, memory())
    assert flights.settle() == []
    assert starts(flights.settle()) == [(Used, KNOWN)]


def test_what_another_queue_lies_over_is_left_out() -> None:
    """At once, or at the next look: the driver may have written before it told anybody."""
    for when in range(2):
        flights = Flights(0, 0, 8)
        flights.offer(0, chain(0, at=0, write=8), 1, memory(), late=True)
        flights.give(0, 4, 1, memory())
        others = [[(0, 16)] if look == when else [] for look in range(2)]
        assert flights.settle(others[0]) == []
        assert starts(flights.settle(others[1])) == [(Offered, b""), (Used, b"")]


def test_what_nothing_lies_over_is_kept() -> None:
    flights = Flights(0, 0, 8)
    flights.offer(0, chain(0, at=0, write=8), 1, memory(), late=True)
    flights.give(0, 4, 1, memory())
    assert flights.settle([(4, 4), (12, 100)]) == []
    assert starts(flights.settle([(4, 4), (12, 100)])) == [(Offered, KNOWN), (Used, KNOWN)]


def test_requests_that_never_end_are_forgotten() -> None:
    flights = Flights(0, 0, 8)
    for number in range(1000):
        flights.offer(number, chain(number, at=0, write=8), 1, memory(), late=False)
        flights.settle()
        assert sum(map(flights.count, range(1000))) <= 8
