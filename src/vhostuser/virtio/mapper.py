"""Requests of the test device for shared memory (`vhu-shm`), for whoever is one and whoever drives one.

The driver gives a `MapperRequest`; the device writes a status byte and, after it, mappings for MAPPINGS, or why not: as
much as there is room for. All numbers are little-endian.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

REQUEST: Final = Struct("<IIIIQQQ")
ENTRY: Final = Struct("<QQQQ")
"""One mapping: shm_offset, len, fd_offset, flags."""
WRITABLE: Final = 1
"""The only flag: the driver may write there, and so to the file."""


class MapperOp(IntEnum):
    """What is asked for."""

    MAP = 1
    UNMAP = 2
    MAPPINGS = 3


class MapperStatus(IntEnum):
    """The first byte of the answer."""

    OK = 0
    REFUSED = 1
    """The front-end said no."""
    INVALID = 2
    """It makes no sense, or the protocol forbids it: nothing was sent to the front-end."""


class MapperRequest(NamedTuple):
    """What the driver gives to read."""

    op: int
    shmid: int = 0
    file: int = 0
    """Which of the device's files, from 0 on. For MAP."""
    flags: int = 0
    """WRITABLE or 0. For MAP."""
    shm_offset: int = 0
    """Where in the region; for MAPPINGS, where to begin."""
    len: int = 0
    """For MAP and UNMAP."""
    fd_offset: int = 0
    """For MAP."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From REQUEST.size bytes."""
        return cls(*REQUEST.unpack(data))

    def pack(self) -> bytes:
        """As it goes to the device."""
        return REQUEST.pack(*self)
