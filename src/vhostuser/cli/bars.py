"""A region as one row of half blocks: each character is two cells, each cell the colour of the file that is mapped there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..trace.history import Placed
from ..trace.moment import Area, Palette, in_units, strip

PAINTS: Final = (39, 208, 71, 170, 220, 80, 203, 137, 218, 113, 66, 109)
"""Of the 256 colours of terminals, one for each of moment.COLOURS."""
EMPTY: Final = 236
HALF: Final = "▌"


def bar(area: Area, palette: Palette, *, cells: int, colour: bool) -> str:
    """`|aaaa....BBBB| 64 MiB`: a letter for each file, upper case where it is writable; with `colour`, half blocks."""
    found = strip(area, 2 * cells if colour else cells)
    if not colour:
        return f"  |{''.join(_letter(placed, palette) for placed in found)}| {in_units(area.size)}"
    paints = [paint(placed, palette) for placed in found]
    return f"  {_halves(list(zip(paints[::2], paints[1::2], strict=True)))} {in_units(area.size)}"


def mark(placed: Placed, palette: Palette, *, colour: bool) -> str:
    """What a mapping looks like in its region's bar."""
    return f"\033[38;5;{paint(placed, palette)}m█\033[0m" if colour else _letter(placed, palette)


def paint(placed: Placed | None, palette: Palette) -> int:
    """The colour of a cell."""
    return PAINTS[palette.colour(placed.fd)] if placed else EMPTY


def _halves(pairs: Sequence[tuple[int, int]]) -> str:
    """Half blocks of these colours, left and right; the terminal is told of a colour only where it changes."""
    told = [None, *pairs]
    changed = [HALF if told[at] == (left, right) else _halved(left, right) for at, (left, right) in enumerate(pairs)]
    return "".join(changed) + "\033[0m"


def _halved(left: int, right: int) -> str:
    return f"\033[38;5;{left};48;5;{right}m{HALF}"


def _letter(placed: Placed | None, palette: Palette) -> str:
    if placed is None:
        return "."
    letter = chr(ord("a") + palette.colour(placed.fd))
    return letter.upper() if placed.writable else letter
