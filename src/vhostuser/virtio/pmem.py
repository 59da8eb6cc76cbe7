"""Numbers and layouts of persistent memory ("PMEM Device"), for whoever is one and whoever drives one."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

REGION: Final = 0
"""The shmid of the memory, with SHMEM_REGION."""
REQUEST: Final = Struct("<I")
"""What the driver gives to read: the request's type."""
RESPONSE: Final = Struct("<I")
"""What the device writes: PmemStatus."""
_CONFIG: Final = Struct("<QQ")


class PmemFeature(IntEnum):
    """Feature bits ("Feature bits" of the PMEM device)."""

    SHMEM_REGION = 0


class PmemRequest(IntEnum):
    """Request types ("Driver Operations")."""

    FLUSH = 0


class PmemStatus(IntEnum):
    """How a request went: 0, or -1 as an unsigned number ("Device Operations")."""

    OK = 0
    FAILED = 0xFFFF_FFFF


class PmemConfig(NamedTuple):
    """The configuration space ("Device configuration layout"): zeros with SHMEM_REGION, where the region says it all."""

    start: int = 0
    size: int = 0

    def pack(self) -> bytes:
        """The configuration space that says so."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From CONFIG_SIZE bytes."""
        return cls(*_CONFIG.unpack(data))


CONFIG_SIZE: Final = _CONFIG.size
