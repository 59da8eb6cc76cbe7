"""How long a request usually takes, kept in a few numbers."""

from __future__ import annotations

from typing import Final

ENOUGH: Final = 20
"""Replies of a kind, before one of them can be called slow."""
TIMES_SLOWER: Final = 16
SLOW: Final = 1_000_000
"""Nanoseconds below which nothing is called slow."""


class Pace:
    """Latencies in buckets of powers of two."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * 65

    def add(self, latency: int) -> None:
        """Count one in."""
        self.count += 1
        self._buckets[max(0, latency).bit_length() % 65] += 1

    @property
    def median(self) -> int:
        """The upper end of the bucket in which the median lies."""
        left = self.count // 2
        for bits, count in enumerate(self._buckets):
            if left < count:
                return 1 << bits
            left -= count
        return 0

    def is_slow(self, latency: int) -> bool:
        """Far from what is usual."""
        return self.count >= ENOUGH and latency > max(SLOW, TIMES_SLOWER * self.median)
