"""Bytes as decisions: what a target does next is read from its input, a byte or a few at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

WORD: Final = (1 << 64) - 1
EDGES: Final = (0, 1, 2, 7, 8, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001, 0x2000, 0xFFFF, 0x10000, 1 << 31, (1 << 32) - 1, 1 << 32)
TOPS: Final = (1 << 62, (1 << 63) - 1, 1 << 63, WORD - 0x1000, WORD - 0xFFF, WORD - 1, WORD)
"""Numbers at which something goes wrong sooner than at others."""
T = TypeVar("T")


class Taker:
    """An input, taken from the front. Behind its end everything is zero, so any input is a whole one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that were not taken."""
        return max(0, len(self._data) - self._at)

    def take(self, size: int) -> bytes:
        """The next bytes."""
        start, self._at = self._at, self._at + size
        return self._data[start : self._at].ljust(size, b"\0")

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def below(self, limit: int) -> int:
        """A number below `limit`: of one byte, or as many as it needs."""
        return int.from_bytes(self.take(max(1, (limit - 1).bit_length() + 7 >> 3)), "little") % limit

    def flag(self) -> bool:
        """Yes or no."""
        return bool(self.byte() & 1)

    def rarely(self) -> bool:
        """Once in sixteen times."""
        return self.byte() & 15 == 15

    def pick(self, choices: Sequence[T]) -> T:
        """One of some."""
        return choices[self.below(len(choices))]

    def number(self, size: int) -> int:
        """A number of `size` bytes: one at an edge, or any."""
        how, limit = self.byte(), 1 << 8 * size
        edges = [edge for edge in (*EDGES, *TOPS) if edge < limit]
        if how < 128:
            return edges[how % len(edges)]
        return how & 63 if how < 192 else int.from_bytes(self.take(size), "little")

    def some(self, most: int) -> bytes:
        """So many bytes at most, and no more than there are."""
        return self.take(min(self.below(most + 1), self.left))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)


class Dice(random.Random):
    """A Random whose numbers are taken from an input, for whoever makes a thing of random numbers."""

    def __init__(self, taker: Taker) -> None:
        super().__init__(0)
        self._taker = taker

    def random(self) -> float:
        """One byte of chance."""
        return self._taker.byte() / 256

    def getrandbits(self, k: int, /) -> int:
        """Whole bytes, cut."""
        return int.from_bytes(self._taker.take(k + 7 >> 3), "little") & (1 << k) - 1
