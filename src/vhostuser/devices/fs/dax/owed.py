"""What the guest stored and a file does not have, for it could not be written back when the mapping it was stored into went.

The guest takes the place in the window for something else, whatever is answered. So the bytes are kept here, are shown
wherever the same range is mapped again, and are tried again until they are written. There are limits: it is host memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

MOST_BYTES: Final = 64 << 20
MOST_FILES: Final = 64
LEAST: Final = 4096
"""Bytes that each piece counts at least, however short it is."""
Key = tuple[int, int]
Piece = tuple[int, bytes]
"""An offset in a file, and the bytes from there on."""


class Owed:
    """Pieces of files, which never overlap: a later one takes the place of what was there. One thread at a time."""

    def __init__(self) -> None:
        self._files: dict[Key, list[Piece]] = {}
        """Pieces in order of their offsets."""
        self._counted = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._files

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._files))

    def add(self, key: Key, offset: int, data: bytes) -> bool:
        """Keep a piece; whether there is room for it."""
        self.cut(key, offset, offset + len(data))
        known = key in self._files
        if self._counted + _weight(data) > MOST_BYTES or (not known and len(self._files) >= MOST_FILES):
            return False
        pieces = self._files.setdefault(key, [])
        pieces.insert(bisect_left(pieces, (offset,)), (offset, data))
        self._counted += _weight(data)
        return True

    def within(self, key: Key, start: int, end: int) -> list[Piece]:
        """What there is of a range of a file."""
        return [_part(piece, start, end) for piece in self._files.get(key, ())[slice(*self._places(key, start, end))]]

    def cut(self, key: Key, start: int, end: int) -> None:
        """Forget what there is of a range."""
        first, last = self._places(key, start, end)
        if first == last:
            return
        pieces = self._files[key]
        gone = pieces[first:last]
        left = [part for piece in gone for part in (_part(piece, 0, start), _part(piece, end, _end(piece))) if part[1]]
        pieces[first:last] = left
        self._counted += sum(_weight(data) for _, data in left) - sum(_weight(data) for _, data in gone)
        if not pieces:
            del self._files[key]

    def clear(self) -> int:
        """Forget all; how many bytes that was."""
        lost = sum(len(data) for pieces in self._files.values() for _, data in pieces)
        self._files.clear()
        self._counted = 0
        return lost

    def _places(self, key: Key, start: int, end: int) -> tuple[int, int]:
        """Which pieces have bytes of a range: from the first on, up to the last."""
        pieces = self._files.get(key, []) if start < end else []
        first = bisect_right(pieces, start, key=_end)
        return first, max(first, bisect_left(pieces, end, key=lambda piece: piece[0]))


def _end(piece: Piece) -> int:
    return piece[0] + len(piece[1])


def _part(piece: Piece, start: int, end: int) -> Piece:
    """What of a piece is in a range; nothing, perhaps."""
    first, last = max(piece[0], start), min(_end(piece), end)
    return first, piece[1][first - piece[0] : last - piece[0]] if first < last else b""


def _weight(data: bytes) -> int:
    return max(len(data), LEAST)
