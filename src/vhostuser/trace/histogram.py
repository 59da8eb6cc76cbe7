"""Times without their list: a few buckets an octave, so that any number of them takes the same little memory."""

from __future__ import annotations

from typing import Final

_STEPS: Final = 32
"""Buckets an octave: a percentile is off by at most 3 % of itself."""


class Histogram:
    """Counts times in nanoseconds; knows their sum and greatest exactly, and percentiles nearly."""

    __slots__ = ("_buckets", "count", "greatest", "least", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        self.least = 0
        self.greatest = 0
        self._buckets: dict[int, int] = {}

    def add(self, nanoseconds: int) -> None:
        """Count one more; a negative one, of a clock that was set back, as 0."""
        value = max(0, nanoseconds)
        self.least = min(self.least, value) if self.count else value
        self.greatest = max(self.greatest, value)
        self.count += 1
        self.sum += value
        bucket = _bucket(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Count all that another one has counted."""
        if other.count:
            self.least = min(self.least, other.least) if self.count else other.least
        self.greatest = max(self.greatest, other.greatest)
        self.count += other.count
        self.sum += other.sum
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    @property
    def mean(self) -> int:
        """The mean; 0 of none."""
        return self.sum // self.count if self.count else 0

    def percentile(self, percent: float) -> int:
        """What `percent` of all are not longer than; 0 of none."""
        left = self.count * percent / 100
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(self.greatest, max(self.least, _middle(bucket)))
        return self.greatest

    def buckets(self) -> list[tuple[int, int]]:
        """The middle of each bucket that is not empty, and how many are in it; in order."""
        return [(_middle(bucket), self._buckets[bucket]) for bucket in sorted(self._buckets)]


def _bucket(value: int) -> int:
    """Small values have a bucket each; then each octave has _STEPS."""
    if value < _STEPS:
        return value
    octave = value.bit_length() - _STEPS.bit_length()
    return octave * _STEPS + (value >> octave)


def _middle(bucket: int) -> int:
    if bucket < _STEPS:
        return bucket
    octave, step = divmod(bucket - _STEPS, _STEPS)
    return ((_STEPS + step) << octave) + ((1 << octave) >> 1)
