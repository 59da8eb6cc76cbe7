"""A table of mappings against a byte-per-page model, in both implementations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.halves import HALVES, table_of
from tests.relations import PAGE
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.regions import Mapping, check_map, check_unmap, remainders

PAGES = 24
places, lengths = st.integers(0, PAGES - 1), st.integers(1, PAGES)


class TableModel(RuleBasedStateMachine):
    """Requests go to a table by the rules of a region; a list says for each page which mapping it belongs to."""

    @initialize(half=st.sampled_from(HALVES))
    def begin(self, half: str) -> None:
        self.table = table_of(half)
        self.model: list[Mapping | None] = [None] * PAGES
        self.sealed: set[Mapping] = set()

    def seen(self, place: int, length: int) -> list[Mapping]:
        """The mappings that the model has in a range, in order."""
        return list(dict.fromkeys(found for found in self.model[place : place + length] if found))

    @rule(place=places, length=lengths, fd_page=st.integers(0, 9), writable=st.booleans(), sealed=st.booleans())
    def map(self, place: int, length: int, fd_page: int, writable: bool, sealed: bool) -> None:
        made = Mapping(place * PAGE, length * PAGE, fd_page * PAGE, writable)
        request = Mmap(0, made.fd_offset, made.shm_offset, made.len, int(writable))
        fits = place + length <= PAGES and not any(self.model[place : place + length])
        try:
            check_map(request, PAGES * PAGE, self.table, RemoteProtocolError)
        except RemoteProtocolError:
            assert not fits
            return
        assert fits
        self.table.insert(made, sealed=sealed)
        self.model[place : place + length] = [made] * length
        self.sealed |= {made} if sealed else set()

    @rule(place=places, length=lengths, exactly=st.booleans())
    def unmap(self, place: int, length: int, exactly: bool) -> None:
        there = self.model[place]
        if exactly and there:
            place, length = there.shm_offset // PAGE, there.len // PAGE
        whole = there is not None and (there.shm_offset, there.len) == (place * PAGE, length * PAGE)
        try:
            gone = check_unmap(Mmap(0, 0, place * PAGE, length * PAGE), PAGES * PAGE, self.table, RemoteProtocolError)
        except RemoteProtocolError:
            assert not whole
            return
        assert whole
        assert gone == there
        self.table.remove(gone)
        self.model[place : place + length] = [None] * length
        self.sealed.discard(gone)

    @rule(place=places, length=lengths)
    def look(self, place: int, length: int) -> None:
        start, size, seen = place * PAGE, length * PAGE, self.seen(place, length)
        assert self.table.covering(start, size) == seen
        assert self.table.overlapping(start, size) == (seen[0] if seen else None)
        assert self.table.exact(start, size) == next((at for at in seen if at[:2] == (start, size)), None)
        inside = self.model[place]
        assert self.table.covering(start + 1, 0) == ([inside] if inside else [])

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.model = [None] * PAGES
        self.sealed.clear()

    @invariant()
    def is_the_model(self) -> None:
        if hasattr(self, "table"):
            seen = self.seen(0, PAGES)
            assert list(self.table) == seen
            assert len(self.table) == len(seen)
            assert [self.table.is_sealed(each) for each in seen] == [each in self.sealed for each in seen]


TestTableModel = TableModel.TestCase


@given(start=st.integers(0, 30), size=st.integers(1, 30), cut=st.integers(0, 60), length=st.integers(0, 30))
def test_remainders_are_the_bytes_outside(start: int, size: int, cut: int, length: int) -> None:
    mapping = Mapping(start, size, 1000 + start, False)
    pieces = remainders(mapping, cut, length)
    left = [at for piece in pieces for at in range(piece.shm_offset, piece.end)]
    assert left == [at for at in range(start, start + size) if not cut <= at < cut + length]
    assert all(piece.fd_offset == 1000 + piece.shm_offset and piece.len for piece in pieces)
