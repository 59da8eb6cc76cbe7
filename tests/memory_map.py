"""What the kernel says is mapped: /proc/self/maps."""

from __future__ import annotations

from typing import NamedTuple


class Area(NamedTuple):
    """One line of it, cut to the range that was asked for."""

    start: int
    end: int
    mode: str
    offset: int
    inode: int


def areas(start: int, end: int) -> list[Area]:
    """The areas that share a byte with the range, cut to it."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, mode, offset, _, inode, *_ = line.split()
            first, last = (int(edge, 16) for edge in span.split("-"))
            if first < end and last > start:
                skip = max(0, start - first)
                found.append(Area(max(first, start), min(last, end), mode, int(offset, 16) + skip, int(inode)))
    return found


def modes(start: int, end: int, page: int = 4096) -> list[str]:
    """The mode of every page of the range, `hole` where nothing is."""
    result = ["hole"] * ((end - start) // page)
    for area in areas(start, end):
        first, last = (area.start - start) // page, (area.end - start) // page
        result[first:last] = [area.mode] * (last - first)
    return result
