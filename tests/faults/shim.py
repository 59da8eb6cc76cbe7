"""System calls that fail on demand: `shim.c`, compiled here, preloaded into a process, and told by that what to do."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("shim.c")
COMPILER: Final = shutil.which("gcc") or shutil.which("cc")
SHORT, TRUNCATED = -1, -2
"""Beside errnos: one byte of it is done; the fds that came are lost (MSG_CTRUNC)."""


class Whose(IntEnum):
    """Whose calls fail: those of the thread that says so, or of all others."""

    MINE = 1
    OTHERS = 2


class Fault(NamedTuple):
    """The `first` call of that name, and those behind it, `times` in all, end in `number`."""

    call: str
    number: int
    first: int = 1
    times: int = 1


def build(folder: Path) -> Path:
    """The library to preload."""
    made = folder / "shim.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return made


class Shim:
    """The library, in a process that has it."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._arm, self._disarm = library.vhu_arm, library.vhu_disarm

    @contextmanager
    def failing(self, fault: Fault, whose: Whose) -> Iterator[list[int]]:
        """In the block the fault is there; afterwards the list has how many calls it hit."""
        hits: list[int] = []
        self._arm(fault.call.encode(), fault.first, fault.times, fault.number, int(whose))
        try:
            yield hits
        finally:
            hits.append(self._disarm())
