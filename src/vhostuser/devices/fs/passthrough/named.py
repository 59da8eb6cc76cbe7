"""A path for an open file: its number in /proc/self/fd, which is this thread's working directory for that long.

Some system calls take nothing else: a file that is open by O_PATH has no extended attributes. To open it in earnest is no
way, for a FIFO would wait and a symbolic link can't be.
"""

from __future__ import annotations

import os
from types import TracebackType

from .credentials import stand_alone
from .inodes import Fd


class Named:
    """The name of an open file, for the functions that take nothing but a path."""

    __slots__ = ("_file", "_directory", "_back")

    def __init__(self, file: Fd, directory: Fd) -> None:
        self._file, self._directory = file, directory

    def __enter__(self) -> bytes:
        stand_alone()
        self._back = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchdir(self._directory.number)
        except BaseException:
            os.close(self._back)
            raise
        return b"%d" % self._file.number

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            os.fchdir(self._back)
        finally:
            os.close(self._back)
