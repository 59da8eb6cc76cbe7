"""What the kernel says about this process's memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Area(NamedTuple):
    """One line of /proc/self/maps."""

    start: int
    end: int
    access: str
    offset: int
    inode: int
    path: str

    @property
    def writable(self) -> bool:
        """Pages may be written."""
        return "w" in self.access


class Resident(NamedTuple):
    """Bytes of memory that this process has now: its own (RssAnon), and those of files, which are everybody's."""

    own: int
    files: int


def areas(start: int, size: int) -> list[Area]:
    """The mapped files within a range of this process's addresses, in order."""
    lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    found = [_area(line) for line in lines]
    return [area for area in found if start <= area.start and area.end <= start + size and area.inode]


def _area(line: str) -> Area:
    addresses, access, offset, _, inode, *path = line.split(None, 5)
    start, end = addresses.split("-")
    return Area(int(start, 16), int(end, 16), access, int(offset, 16), int(inode), path[0] if path else "")


def resident() -> Resident:
    """The exact numbers, from the page tables; RssAnon in /proc/self/status is the same number, but may lag behind."""
    text = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    numbers = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in text)}
    return Resident(numbers["Anonymous"], numbers["Rss"] - numbers["Anonymous"])
