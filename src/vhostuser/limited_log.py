"""Warnings about a peer, few enough that it can't flood the log and plain enough that it can't abuse a terminal."""

from __future__ import annotations

import logging
import time
from typing import Final

PER_SECOND: Final = 5
LONGEST: Final = 512


class LimitedLog:
    """Passes at most five lines a second on, each at most 512 characters, control characters escaped."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._second = 0
        self._count = 0
        self._dropped = 0

    def warning(self, text: str) -> None:
        """Log `text`, unless there was too much of it this second; the next line then says how much."""
        second = int(time.monotonic())
        if second != self._second:
            if self._dropped:
                self._log.warning("%d more such lines were left out", self._dropped)
            self._second, self._count, self._dropped = second, 0, 0
        self._count += 1
        if self._count > PER_SECOND:
            self._dropped += 1
        else:
            self._log.warning("%s", printable(text)[:LONGEST])


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal might obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
