"""A shared memory region as one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .info import in_units
from .smaps import Area

CELLS: Final = 64
_COLOURS: Final = (42, 44, 45, 43, 46)


def bar(base: int, size: int, mapped: Sequence[Area], *, colour: bool) -> str:
    """`|aaaa....BBBB|`: a letter for each file, upper case where it is writable, and dots where nothing is mapped."""
    cells = ["."] * CELLS
    legend = []
    for area in mapped:
        name = Path(area.path).name
        letter = name[0].upper() if area.writable else name[0].lower()
        paint = _COLOURS[ord(name[0].lower()) % len(_COLOURS)]
        shown = f"\033[{paint}m{letter}\033[0m" if colour else letter
        first, last = (area.start - base) * CELLS // size, (area.end - 1 - base) * CELLS // size
        cells[first : last + 1] = [shown] * (last + 1 - first)
        legend.append(f"{shown}={name} {'rw' if area.writable else 'ro'}")
    return f"|{''.join(cells)}| {in_units(size)}: {', '.join(legend) or 'nothing is mapped'}"
