"""The structures and numbers of VIRTIO's block device ("Block Device")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

SECTOR: Final = 512
"""Bytes of a sector: the unit of every address, whatever `blk_size` is."""
HEADER: Final = Struct("<IIQ")
"""type, reserved, sector: the beginning of each request."""
SEGMENT: Final = Struct("<QII")
"""sector, num_sectors, flags: a range to discard or to zero."""
FLAG_UNMAP: Final = 1
"""The range of a WRITE_ZEROES may be deallocated."""
ID_SIZE: Final = 20
"""Bytes of the device's id string, which is padded with zeros."""
_CONFIG: Final = Struct("<QII4xIBBHI2xHIIIIIB3x36x")


class BlkFeature(IntEnum):
    """Feature bits ("Feature bits")."""

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
    ZONED = 17


class RequestType(IntEnum):
    """What a request asks for ("Device Operation")."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class BlkStatus(IntEnum):
    """How a request ended: its last byte ("Device Operation")."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkConfig:
    """struct virtio_blk_config up to its end; the fields of what no device here offers are zeros."""

    capacity: int
    seg_max: int
    blk_size: int
    physical_block_exp: int
    min_io_size: int
    num_queues: int
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """The bytes of the configuration space."""
        return _CONFIG.pack(
            self.capacity,
            0,  # size_max
            self.seg_max,
            self.blk_size,
            self.physical_block_exp,
            0,  # alignment_offset
            self.min_io_size,
            0,  # opt_io_size
            self.num_queues,
            self.max_discard_sectors,
            self.max_discard_seg,
            self.discard_sector_alignment,
            self.max_write_zeroes_sectors,
            self.max_write_zeroes_seg,
            self.write_zeroes_may_unmap,
        )
