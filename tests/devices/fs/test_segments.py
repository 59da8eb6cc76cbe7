"""F25 and F26, the arithmetic: segments replace, and are taken away, in all relations; compared with a list of bytes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.devices.fs.dax.segments import Segment, Segments

Byte = tuple[str, int] | None
SIZE = 16


def bytes_of(segments: Segments[str]) -> list[Byte]:
    """What is in each place of the window: which byte of which file."""
    places: list[Byte] = [None] * SIZE
    end = 0
    for row in segments:
        assert row.moffset >= end
        assert row.size > 0
        end = row.end
        for at in range(row.size):
            places[row.moffset + at] = (row.file, row.foffset + at)
    return places


def segment(start: int, end: int, file: str = "a", foffset: int = 100) -> Segment[str]:
    return Segment(start, end - start, foffset, file, writable=False)


RANGES = [(start, end) for start, end in product(range(13), repeat=2) if start < end]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_f25_a_segment_replaces_exactly_its_place(start: int, end: int) -> None:
    """The 13 relations to a segment at [4, 8), with neighbours on both sides."""
    segments: Segments[str] = Segments()
    for row in (segment(4, 8, "b", 50), segment(0, 3, "c"), segment(9, 12, "c")):
        assert segments.add(row) == []
    before = bytes_of(segments)
    replaced = segments.add(segment(start, end))
    after = bytes_of(segments)
    assert after[start:end] == [("a", 100 + at) for at in range(end - start)]
    assert after[:start] + after[end:] == before[:start] + before[end:]
    told = {row.moffset + at: (row.file, row.foffset + at) for row in replaced for at in range(row.size)}
    assert told == {at: before[at] for at in range(start, end) if before[at]}


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_f26_exactly_a_range_is_taken_away(start: int, end: int) -> None:
    segments: Segments[str] = Segments()
    segments.add(segment(4, 8, "b", 50))
    before = bytes_of(segments)
    between = segments.between(start, end)
    assert segments.remove(start, end) == between
    assert bytes_of(segments) == before[:start] + [None] * (end - start) + before[end:]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(1, SIZE), st.sampled_from("abc"))))
def test_any_sequence_leaves_what_a_list_of_bytes_has(steps: list[tuple[bool, int, int, str]]) -> None:
    segments: Segments[str] = Segments()
    places: list[Byte] = [None] * SIZE
    for adds, start, size, file in steps:
        end = min(SIZE, start + size)
        if adds:
            segments.add(segment(start, end, file, 10 * start))
            places[start:end] = [(file, 10 * start + at) for at in range(end - start)]
        else:
            segments.remove(start, end)
            places[start:end] = [None] * (end - start)
        assert bytes_of(segments) == places
        assert [segments.count(each) for each in "abc"] == [sum(row.file == each for row in segments) for each in "abc"]
        assert len(segments) == len(list(segments))


def test_a_part_is_found_by_its_place_in_the_file() -> None:
    row = segment(4, 8, "a", 100)
    assert row.of_file(0, 100) is None
    assert row.of_file(104, 200) is None
    assert row.of_file(0, 1000) == row
    assert row.of_file(101, 103) == segment(5, 7, "a", 101)
