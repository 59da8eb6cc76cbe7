"""Allen's thirteen relations of a range to another one, as pages of a region."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..protocol.numbers import PAGE


class Range(NamedTuple):
    """Bytes of a region."""

    offset: int
    len: int


def pages(first: int, end: int) -> Range:
    """The pages from `first` to below `end`."""
    return Range(first * PAGE, (end - first) * PAGE)


MIDDLE: Final = pages(8, 12)
"""What is there."""
APART: Final = {"before": pages(2, 6), "after": pages(14, 18), "meeting": pages(4, 8), "met_by": pages(12, 16)}
"""Relations without a page in common."""
OVERLAPS: Final = {
    "overlapping": pages(6, 10),
    "overlapped_by": pages(10, 14),
    "starting": pages(8, 10),
    "started_by": pages(8, 14),
    "during": pages(9, 11),
    "containing": pages(6, 14),
    "finishing": pages(10, 12),
    "finished_by": pages(6, 12),
}
"""Relations with pages in common, other than being equal."""
EQUAL: Final = {"equal_to": MIDDLE}
