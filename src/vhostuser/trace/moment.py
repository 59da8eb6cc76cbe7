"""The regions at one moment: what is mapped where, and as a strip of cells, however many mappings there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from .event import Event, FdNote, Remark, Remarkable
from .history import History, Placed
from .phrases import LONGEST_PATH, cut

COLOURS: Final = 12
"""Colours that files are told apart by."""
_REMEMBERED: Final = 4096
"""Files that keep their colour; the one seen first is forgotten for one more."""


@dataclass(frozen=True, slots=True)
class Area:
    """A region of a connection at one moment."""

    connection: int
    shmid: int
    size: int
    sized: bool
    """The size was asked for; else it is where the last mapping ends."""
    mappings: tuple[Placed, ...]
    """By offset; none overlap."""

    @property
    def mapped(self) -> int:
        """Bytes that are mapped."""
        return sum(each.len for each in self.mappings)


def areas_of(history: History, at: int | None = None) -> list[Area]:
    """All regions that are known at `at`, or now, with what is mapped there."""
    return areas(history.sizes, history.live(at))


def areas(sizes: dict[tuple[int, int], int], live: Iterable[Placed]) -> list[Area]:
    """The regions of these sizes, by connection and shmid, with these mappings."""
    found: dict[tuple[int, int], list[Placed]] = {key: [] for key in sorted(sizes)}
    for placed in live:
        found.setdefault((placed.connection, placed.shmid), []).append(placed)
    return [_area(key, sizes.get(key, 0), mappings) for key, mappings in sorted(found.items())]


def _area(key: tuple[int, int], size: int, mappings: list[Placed]) -> Area:
    end = max((each.shm_offset + each.len for each in mappings), default=0)
    ordered = tuple(sorted(mappings, key=lambda each: each.shm_offset))
    return Area(*key, max(size, end), sized=0 < size >= end, mappings=ordered)


def before_the_end(events: Iterable[Event]) -> Iterator[Event]:
    """All events but the closings at the end, by which every mapping goes: nobody asks to see nothing."""
    closings: list[Event] = []
    for event in events:
        if isinstance(event, Remark) and event.about is not Remarkable.OPENED:
            closings.append(event)
            continue
        yield from closings
        closings.clear()
        yield event


def strip(area: Area, cells: int) -> list[Placed | None]:
    """The region cut into equal cells: for each the mapping with the most bytes in it, or None where nothing is mapped."""
    found: list[Placed | None] = [None] * cells
    most = [0] * cells
    if not area.size:
        return found
    for placed in area.mappings:
        begin, end = placed.shm_offset, placed.shm_offset + placed.len
        first, last = begin * cells // area.size, (end - 1) * cells // area.size
        for cell in range(first, min(last, cells - 1) + 1):
            share = min(end, -(-area.size * (cell + 1) // cells)) - max(begin, area.size * cell // cells)
            if share > most[cell]:
                most[cell], found[cell] = share, placed
    return found


class Palette:
    """Gives each file a colour, in order of appearance, so that it keeps it wherever it is mapped next."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, str], int] = {}
        self._next = 0

    def colour(self, fd: FdNote | None) -> int:
        """Which of COLOURS a file has."""
        key = (fd.dev, fd.ino, "" if fd.ino else fd.path) if fd else (0, 0, "")
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = self._next % COLOURS
            self._next += 1
        return self._known[key]


def heading(area: Area) -> str:
    """`connection 0, region 0: 64 MiB, 2 mappings, 24 MiB mapped (37 %)`."""
    size = in_units(area.size) if area.sized else f"at least {in_units(area.size)}"
    count = f"{len(area.mappings)} mapping{'s' * (len(area.mappings) != 1)}"
    full = f"{in_units(area.mapped)} mapped ({share(area.mapped, area.size)})"
    return f"connection {area.connection}, region {area.shmid}: {size}, {count}, {full}"


def described(placed: Placed) -> str:
    """`0x2000000+0x800000 rw /srv/notes.bin ino 12 from 0x0`."""
    name = cut(placed.fd.path or placed.fd.kind, LONGEST_PATH) if placed.fd else "no fd"
    inode = f" ino {placed.fd.ino}" if placed.fd and placed.fd.ino else ""
    access = "rw" if placed.writable else "ro"
    return f"{placed.shm_offset:#x}+{placed.len:#x} {access} {name}{inode} from {placed.fd_offset:#x}"


def share(part: int, whole: int) -> str:
    """`75 %`, of a whole that may be nothing."""
    return f"{100 * part // whole} %" if whole else "0 %"


def in_units(size: int) -> str:
    """A number of bytes for people: `48 MiB`, `1.5 MiB`, `513 bytes`."""
    value, unit = float(size), 0
    while value >= 1024 and unit + 1 < len(_UNITS):
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
