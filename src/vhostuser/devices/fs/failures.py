"""Write-backs that failed, and who was told of which.

Each has a number. Who has a file open remembers that of the last one it was told of: so everybody is told once, and nobody
learns of a loss in the place of somebody else. Linux does it like this (errseq).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

MOST_FILES: Final = 1024
"""Files of which failures are known apart. Beyond that any file may be the one: to be told too much loses nothing."""
Key = tuple[int, int]
"""st_dev and st_ino."""


@dataclass(slots=True)
class _Failure:
    number: int
    errno: int
    told: bool = False
    """Whether anybody was."""


class Failures:
    """The last failure of each file. Any thread, at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._last: dict[Key, _Failure] = {}
        """In the order of their numbers."""
        self._others = _none()

    def add(self, key: Key, errno: int) -> None:
        """What was stored into this file is not written."""
        with self._lock:
            self._count += 1
            self._last.pop(key, None)
            self._last[key] = _Failure(self._count, errno)
            if len(self._last) > MOST_FILES:
                self._others = self._last.pop(next(iter(self._last)))

    def begin(self, key: Key) -> int:
        """The number that who opens a file begins with. What nobody was told of yet will be told to it."""
        with self._lock:
            found = self._of(key)
            return found.number if found.told or key not in self._last else found.number - 1

    def after(self, key: Key | None, told: int) -> tuple[int, int]:
        """The number and the errno of the last failure of a file, or of any; or `told` and 0 if it is not a later one."""
        with self._lock:
            return _later(self._of(key), told)

    def show(self, key: Key, told: int) -> int:
        """Its errno, or 0, for somebody who remembers nothing of it: that is told once more, though to no later opener."""
        with self._lock:
            found = self._of(key)
            number, error = _later(found, told)
            found.told |= number > told
            return error

    def tell(self, key: Key, told: int) -> tuple[int, int]:
        """The same for somebody who remembers it."""
        with self._lock:
            found = self._of(key)
            found.told = True
            return _later(found, told)

    def clear(self) -> None:
        """Nobody has a file open any more."""
        with self._lock:
            self._last.clear()
            self._others = _none()

    def _of(self, key: Key | None) -> _Failure:
        if key is not None:
            return self._last.get(key, self._others)
        return next(reversed(self._last.values()), self._others)


def _none() -> _Failure:
    return _Failure(0, 0)


def _later(found: _Failure, told: int) -> tuple[int, int]:
    return (found.number, found.errno) if found.number > told else (told, 0)
