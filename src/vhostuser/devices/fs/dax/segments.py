"""What is where in a window: ranges that never overlap, cut where a new one needs the place."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segment(Generic[T]):
    """`size` bytes of a file from `foffset` on, in the window from `moffset` on."""

    moffset: int
    size: int
    foffset: int
    file: T
    writable: bool

    @property
    def end(self) -> int:
        """Where the window has something else again."""
        return self.moffset + self.size

    def part(self, start: int, end: int) -> Segment[T]:
        """Its bytes between two places of the window; nothing may be left of it."""
        start, end = max(start, self.moffset), min(end, self.end)
        return replace(self, moffset=start, size=end - start, foffset=self.foffset + start - self.moffset)

    def of_file(self, start: int, end: int) -> Segment[T] | None:
        """Its bytes between two places of the file; None if it has none."""
        shift = self.moffset - self.foffset
        first, last = max(start, self.foffset), min(end, self.foffset + self.size)
        return self.part(first + shift, last + shift) if first < last else None


class Segments(Generic[T]):
    """The segments of a window, in order. VIRTIO's rule: a mapping may overlap others in part, and is replaced in part."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._rows: list[Segment[T]] = []
        self._counts: dict[int, int] = {}

    def __iter__(self) -> Iterator[Segment[T]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, file: T) -> int:
        """How many segments this very object has."""
        return self._counts.get(id(file), 0)

    def between(self, start: int, end: int) -> list[Segment[T]]:
        """The parts of segments that lie between two places of the window."""
        first, last = self._touched(start, end)
        return [row.part(start, end) for row in self._rows[first:last]]

    def add(self, segment: Segment[T]) -> list[Segment[T]]:
        """Put a segment in place of whatever is there; the parts that it replaces."""
        replaced = self.remove(segment.moffset, segment.end)
        at = bisect_left(self._starts, segment.moffset)
        self._insert(at, at, [segment])
        return replaced

    def remove(self, start: int, end: int) -> list[Segment[T]]:
        """Take away what lies between two places of the window; the parts that were there."""
        first, last = self._touched(start, end)
        rows = self._rows[first:last]
        left = [row.part(row.moffset, start) for row in rows[:1] if row.moffset < start]
        left += [row.part(end, row.end) for row in rows[-1:] if row.end > end]
        self._insert(first, last, left)
        return [row.part(start, end) for row in rows]

    def clear(self) -> None:
        """Take all away."""
        self._insert(0, len(self._rows), [])

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Which rows have a byte between the two places."""
        first = bisect_right(self._starts, start)
        if first and self._rows[first - 1].end > start:
            first -= 1
        return first, max(first, bisect_left(self._starts, end))

    def _insert(self, first: int, last: int, rows: list[Segment[T]]) -> None:
        for row in self._rows[first:last]:
            self._counts[id(row.file)] -= 1
            if not self._counts[id(row.file)]:
                del self._counts[id(row.file)]
        for row in rows:
            self._counts[id(row.file)] = self._counts.get(id(row.file), 0) + 1
        self._rows[first:last] = rows
        self._starts[first:last] = [row.moffset for row in rows]
