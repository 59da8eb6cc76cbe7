"""Numbers and layouts of the block device ("Block Device"), for whoever is one and whoever drives one."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

SECTOR: Final = 512
"""The unit of all positions and counts, whatever the device's own block size is."""
ID_SIZE: Final = 20
HEADER: Final = Struct("<IIQ")
"""What each request begins with: its type, a reserved number, its first sector."""
RANGE: Final = Struct("<QII")
"""What a discard or write-zeroes is about: first sector, number of sectors, RangeFlag."""


class BlockFeature(IntEnum):
    """Feature bits ("Feature bits" of the block device)."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16


class BlockRequest(IntEnum):
    """Request types ("Device Operation" of the block device)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


class BlockStatus(IntEnum):
    """The last byte that the device writes."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class RangeFlag(IntEnum):
    """Flags of a range."""

    UNMAP = 1


class BlockConfig(NamedTuple):
    """The configuration space ("Device configuration layout"), as far as write-zeroes.

    A field means something only with its feature: `blk_size` with BLK_SIZE, `num_queues` with MQ, and so on.
    """

    capacity: int = 0
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    writeback: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """The configuration space that says so."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """What a configuration space says; zeroes where it is too short."""
        return cls(*_CONFIG.unpack(data[: _CONFIG.size].ljust(_CONFIG.size, b"\0")))


_CONFIG = Struct("<QIIHBBIBBHIBxHIIIIIB3x")
CONFIG_SIZE: Final = _CONFIG.size
