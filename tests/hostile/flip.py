"""A process that writes sense and nonsense into a live ring as fast as it can: `flip.py FILE_FD KICK_FD FORMAT PARENT SEED`.

What it puts into descriptors names NAMED, or nothing that is there; every field is written in one store.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import Callable
from typing import Final

RINGS: Final = 4 << 16
BUFFERS: Final = 0x100000
TABLE: Final = 0x4000
"""Where in the buffers an indirect table of 8 entries lies."""
PLACES: Final = (0x2000, 0x7FF0)
"""Where in the buffers data lies; the second one crosses the border of two regions."""
LENGTHS: Final = (8, 16, 64)
NAMED: Final = (*((start, start + max(LENGTHS)) for start in PLACES), (TABLE, TABLE + 128))
"""What a device may write to, whatever it read of descriptors."""
NOWHERE: Final = (0, 1 << 40, (1 << 64) - 8, BUFFERS + (1 << 16) - 4)
TOO_LONG: Final = (0, 17, 0xFFFFFFF0, 0xFFFFFFFF)
SIZE: Final = 16
AVAIL, USED = 1 << 7, 1 << 15


class Flipper:
    """A ring of SIZE entries in the memory at `file`, as its driver may spoil it."""

    def __init__(self, file: int, seed: int) -> None:
        self.memory = memoryview(mmap.mmap(file, RINGS + (1 << 16)))
        self.words, self.halves = self.memory.cast("Q"), self.memory.cast("H")
        self.dice = random.Random(seed)

    def nonsense(self) -> bool:
        """Now and then."""
        return self.dice.random() < 0.02

    def descriptor(self, at: int, *, packed: bool, entries: int) -> None:
        """Write one descriptor in two stores, in either order."""
        dice = self.dice
        addr = dice.choice(NOWHERE) if self.nonsense() else BUFFERS + dice.choice((*PLACES, TABLE))
        length = dice.choice(TOO_LONG) if self.nonsense() else dice.choice(LENGTHS)
        flags = dice.choice((0, 1, 1, 2, 2, 3, 4, 0xFFFF if self.nonsense() else 4))
        following = 0xFFFF if self.nonsense() else dice.randrange(entries)
        if packed:
            flags |= dice.choice((AVAIL, USED, AVAIL, USED, AVAIL | USED, 0))
            rest = length | following << 32 | (flags & 0xFFFF) << 48
        else:
            rest = length | (flags & 0xFFFF) << 32 | following << 48
        stores = [(at // 8, addr), (at // 8 + 1, rest)]
        for index, value in stores if dice.random() < 0.5 else reversed(stores):
            self.words[index] = value

    def table(self, *, packed: bool) -> None:
        """Write one entry of the indirect table."""
        self.descriptor(RINGS + TABLE + 16 * self.dice.randrange(8), packed=packed, entries=8)

    def split(self) -> None:
        """Change one thing in a split ring."""
        self.descriptor(16 * self.dice.randrange(SIZE), packed=False, entries=SIZE)
        available = 8 * SIZE
        self.halves[available] = self.dice.choice((0, 1, 0xFFFF))
        self.halves[available + 2 + self.dice.randrange(SIZE)] = SIZE if self.nonsense() else self.dice.randrange(SIZE)
        step = self.dice.choice((-1, 17, 0x8000)) if self.nonsense() else self.dice.choice((0, 0, 1, 1, 2))
        self.halves[available + 1] = (self.halves[available + 1] + step) & 0xFFFF

    def packed(self) -> None:
        """Change one thing in a packed ring."""
        self.descriptor(16 * self.dice.randrange(SIZE), packed=True, entries=SIZE)
        for half in range(2):
            self.halves[8 * SIZE + half] = self.dice.choice((0, 1, 2, 3, 0x8000, self.dice.randrange(1 << 16)))


def main() -> None:
    file, kick, parent, seed = (int(sys.argv[at]) for at in (1, 2, 4, 5))
    packed = sys.argv[3] == "packed"
    flipper = Flipper(file, seed)
    change: Callable[[], None] = flipper.packed if packed else flipper.split
    while os.getppid() == parent:
        for _ in range(100):
            change()
            flipper.table(packed=packed)
        os.eventfd_write(kick, 1)


if __name__ == "__main__":
    main()
