"""Numbers and layout of the console device ("Console Device"), for whoever is one and whoever drives one."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

RECEIVE: Final = 0
"""The queue of what the driver gets on port 0, the only one without MULTIPORT."""
TRANSMIT: Final = 1
"""The queue of what it sends there."""


class ConsoleFeature(IntEnum):
    """Feature bits ("Feature bits" of the console device)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


class ConsoleConfig(NamedTuple):
    """The configuration space ("Device configuration layout").

    `cols` and `rows` mean something only with SIZE, `max_nr_ports` with MULTIPORT, `emerg_wr` with EMERG_WRITE.
    """

    cols: int = 0
    rows: int = 0
    max_nr_ports: int = 0
    emerg_wr: int = 0

    def pack(self) -> bytes:
        """The configuration space that says so."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """What a configuration space says; zeroes where it is too short."""
        return cls(*_CONFIG.unpack(data[: _CONFIG.size].ljust(_CONFIG.size, b"\0")))


_CONFIG = Struct("<HHII")
CONFIG_SIZE: Final = _CONFIG.size
