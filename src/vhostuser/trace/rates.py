"""How much of what came in which second, for the last minutes."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

SECONDS: Final = 600
"""Seconds that are remembered."""
MOST_NAMES: Final = 128
"""Names in a second; what is beyond goes into OTHERS."""
OTHERS: Final = "others"
_SECOND: Final = 1_000_000_000


class Rates:
    """Counts by name and second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[str]]] = deque(maxlen=SECONDS)

    def add(self, at: int, name: str) -> None:
        """Count one more at `at`, in nanoseconds; one that comes late counts where it belongs, or not at all."""
        second = at // _SECOND
        counted = self._counter(second)
        if counted is not None:
            counted[name if name in counted or len(counted) < MOST_NAMES else OTHERS] += 1

    def _counter(self, second: int) -> Counter[str] | None:
        if not self._seconds or second > self._seconds[-1][0]:
            self._seconds.append((second, Counter()))
            return self._seconds[-1][1]
        return next((counted for each, counted in reversed(self._seconds) if each == second), None)

    def at(self, at: int) -> Counter[str]:
        """What came in the second of `at`."""
        second = at // _SECOND
        return next((counted for each, counted in reversed(self._seconds) if each == second), Counter())

    def course(self, name: str, until: int, seconds: int) -> list[int]:
        """How much of `name` came in each of the seconds up to that of `until`, oldest first."""
        last = until // _SECOND
        course = [0] * seconds
        for second, counted in self._seconds:
            if last - seconds < second <= last:
                course[second - last + seconds - 1] = counted[name]
        return course
