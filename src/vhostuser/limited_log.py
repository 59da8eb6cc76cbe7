"""Warnings about a peer, few enough that it can't flood the log and plain enough that it can't abuse a terminal."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Final

PER_SECOND: Final = 5
LONGEST: Final = 512


class LimitedLog:
    """Passes at most five records a second on, none twice, lines of at most 512 characters, control characters escaped."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._second = 0
        self._seen: set[str] = set()
        self._dropped = 0

    def warning(self, text: str) -> None:
        """Log `text`, unless there was too much of it this second; the next line then says how much."""
        if self._may_pass(text):
            self._log.warning("%s", printable(text)[:LONGEST])

    def info(self, text: str) -> None:
        """Log what a peer may have us say as often as it likes."""
        if self._may_pass(text):
            self._log.info("%s", printable(text)[:LONGEST])

    def debug(self, text: str) -> None:
        """Log what is ordinary, if anybody wants that; else it takes nothing from what else may be said."""
        if self._log.isEnabledFor(logging.DEBUG) and self._may_pass(text):
            self._log.debug("%s", printable(text)[:LONGEST])

    def exception(self, text: str) -> None:
        """Log `text` and where the exception in progress came from, as sparingly."""
        if self._may_pass(text):
            lines = (printable(line)[:LONGEST] for line in traceback.format_exc().splitlines())
            self._log.error("%s\n%s", printable(text)[:LONGEST], "\n".join(lines))

    def _may_pass(self, text: str) -> bool:
        """Neither has it been said this second, nor too much else."""
        second = int(time.monotonic())
        if second != self._second:
            if self._dropped:
                self._log.warning("%d more such lines were left out", self._dropped)
            self._second, self._dropped = second, 0
            self._seen.clear()
        if text in self._seen or len(self._seen) >= PER_SECOND:
            self._dropped += 1
            return False
        self._seen.add(text)
        return True


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal might obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
