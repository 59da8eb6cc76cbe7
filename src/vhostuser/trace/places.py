"""Ranges of guest memory, as many as may be, and whether one more lies over any of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Place = tuple[int, int]
"""A guest address, and bytes there."""


class Places:
    """The union of ranges."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.add(places)

    def add(self, places: Iterable[Place]) -> None:
        """Ranges more; those that touch become one."""
        for start, size in places:
            if size:
                self._add(start, start + size)

    def _add(self, start: int, end: int) -> None:
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def meet(self, places: Iterable[Place]) -> bool:
        """Some byte of those ranges is in these."""
        return any(size and self._meets(start, start + size) for start, size in places)

    def _meets(self, start: int, end: int) -> bool:
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end
