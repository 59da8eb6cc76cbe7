"""A disk whose sectors are those of a file: the device behind `vhu-blk`.

The bytes of a request go straight between guest memory and the file. Where its parts lie is the driver's choice ("Message
Framing"): the header is the first 16 readable bytes, the status the last writable byte, the data what is left.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from .. import _native
from ..device import CompiledHandler, Device
from ..errors import VhostUserError
from ..limited_log import LimitedLog
from ..virtio.block import (
    HEADER,
    ID_SIZE,
    RANGE,
    SECTOR,
    BlockConfig,
    BlockFeature,
    BlockRequest,
    BlockStatus,
    RangeFlag,
)
from ..virtio.chain import DescriptorChain
from ..virtio.numbers import DeviceId
from .disk import Disk

log = logging.getLogger(__name__)
QUEUE_SIZE: Final = 1024
USUAL_QUEUE_SIZE: Final = 128
"""The ring that QEMU makes unless told otherwise. No request may be longer than it, and the device can't know it in time."""
MAX_SEGMENTS: Final = 32
"""Ranges of one DISCARD."""
MAX_DISCARD: Final = 1 << 22
"""Sectors of one range to discard: 2 GiB."""
MAX_ZEROES: Final = 1 << 16
"""Sectors of a WRITE_ZEROES, 32 MiB: a file system may be so old that they are written one by one."""
NOT_OFFERED: Final = bytes(36)
"""The rest of the configuration space: what is about secure erase and zones."""
PHYSICAL_BLOCK_EXP: Final = 3
"""A sector less than a page is written by reading the page first: 2^3 sectors are better."""

_ALWAYS: Final = (BlockFeature.SEG_MAX, BlockFeature.BLK_SIZE, BlockFeature.FLUSH, BlockFeature.TOPOLOGY, BlockFeature.MQ)
_WRITABLE: Final = (BlockFeature.DISCARD, BlockFeature.WRITE_ZEROES)
_HEADER_SIZE: Final = HEADER.size
_FLUSH: Final = 1 << BlockFeature.FLUSH
_STATUS: Final = [bytes((status,)) for status in BlockStatus]
_OK: Final = int(BlockStatus.OK)
_IOERR: Final = int(BlockStatus.IOERR)
Handler = Callable[[DescriptorChain, int, int], int]
"""Takes the request, its sector and the number of writable data bytes; how many of these it has written."""


class Refused(VhostUserError):
    """A request that can't be done as it stands, and the status that says so."""

    def __init__(self, text: str, status: BlockStatus = BlockStatus.IOERR) -> None:
        super().__init__(text)
        self.status = status


class BlockDevice(Device):
    """A disk. It belongs to the device, which closes it.

    Writes are durable once a FLUSH that follows them is done; for a driver that did not take FLUSH, when they are done.
    Reads, writes and flushes are compiled code's, in a thread a queue, unless `native` says no, or nothing is compiled.
    """

    virtio_id = DeviceId.BLOCK
    drain_timeout = 60.0
    """A disk may be slow, and must not write into the memory of a driver that has stopped it."""

    def __init__(self, disk: Disk, *, num_queues: int = 1, queue_size: int = QUEUE_SIZE, native: bool = True) -> None:
        self.queue_sizes = (queue_size,) * num_queues
        self.features = sum(1 << bit for bit in (*_ALWAYS, *((BlockFeature.RO,) if disk.read_only else _WRITABLE)))
        self.config = _config(disk, num_queues, queue_size).pack() + NOT_OFFERED
        self._disk, self._log = disk, LimitedLog(log)
        self._sectors = disk.size // SECTOR
        self._id = os.path.basename(disk.path).encode("ascii", "replace")[:ID_SIZE].ljust(ID_SIZE, b"\0")
        self.queue_threads = native and _native.accelerated
        if self.queue_threads:
            disk.compile(self._id)
        self._handlers: dict[int, Handler] = {
            BlockRequest.IN: self._in,
            BlockRequest.OUT: self._out,
            BlockRequest.FLUSH: self._flush,
            BlockRequest.GET_ID: self._get_id,
            BlockRequest.DISCARD: self._discard,
            BlockRequest.WRITE_ZEROES: self._write_zeroes,
        }

    def compiled(self) -> CompiledHandler | None:
        """The disk for compiled code, which is to make writes durable for a driver that did not take FLUSH."""
        if type(self).process is not BlockDevice.process:
            return None
        if file := self._disk.compiled:
            file.durable = not self.acknowledged & _FLUSH
        return file

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Do one request. The driver is told of the data that a request has written, and of the status byte.

        One that has no room for its status comes back empty.
        """
        room = chain.writable_size - 1
        if room < 0:
            self._log.warning("a request has no room for its status")
            return
        written, status = 0, _IOERR
        try:
            written = self._perform(chain, room)
            status = _OK
        except Refused as error:
            status = error.status
            self._log.warning(str(error))
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            self._log.warning(f"a request failed: {error.strerror} ({name})")
        finally:
            chain.written = room
            chain.write(_STATUS[status])
            chain.written = written + 1

    def _perform(self, chain: DescriptorChain, room: int) -> int:
        header = chain.read(_HEADER_SIZE)
        if len(header) < _HEADER_SIZE:
            raise Refused(f"a request has a header of {len(header)} bytes, not {_HEADER_SIZE}")
        kind, _, sector = HEADER.unpack(header)
        handler = self._handlers.get(kind)
        if handler is None:
            raise Refused(f"a request of type {kind} is not supported", BlockStatus.UNSUPP)
        return handler(chain, sector, room)

    def _in(self, chain: DescriptorChain, sector: int, room: int) -> int:
        self._check("IN", sector, room)
        self._disk.read(chain, sector * SECTOR, start=0, size=room)
        return room

    def _out(self, chain: DescriptorChain, sector: int, room: int) -> int:
        self._check_writable("OUT")
        size = chain.readable_size - _HEADER_SIZE
        self._check("OUT", sector, size)
        self._disk.write(chain, sector * SECTOR, start=_HEADER_SIZE, size=size)
        self._settle()
        return 0

    def _flush(self, chain: DescriptorChain, sector: int, room: int) -> int:
        self._disk.flush()
        return 0

    def _get_id(self, chain: DescriptorChain, sector: int, room: int) -> int:
        return chain.write(self._id[:room])

    def _discard(self, chain: DescriptorChain, sector: int, room: int) -> int:
        self._check_writable("DISCARD")
        for start, size, _ in self._segments(chain, "DISCARD", MAX_SEGMENTS, MAX_DISCARD, flags=0):
            self._disk.discard(start, size)
        return 0

    def _write_zeroes(self, chain: DescriptorChain, sector: int, room: int) -> int:
        self._check_writable("WRITE_ZEROES")
        for start, size, flags in self._segments(chain, "WRITE_ZEROES", 1, MAX_ZEROES, flags=RangeFlag.UNMAP):
            self._disk.write_zeroes(start, size, unmap=bool(flags & RangeFlag.UNMAP))
        self._settle()
        return 0

    def _segments(
        self, chain: DescriptorChain, name: str, most: int, longest: int, *, flags: int
    ) -> list[tuple[int, int, int]]:
        """The ranges of a request, all of them right: first byte, bytes (some), flags. Only those in `flags` may be set."""
        size = chain.readable_size - _HEADER_SIZE
        if not size or size % RANGE.size or size > most * RANGE.size:
            raise Refused(f"{name} has {size} bytes of ranges: {RANGE.size} each, and at most {most}")
        rows = list(RANGE.iter_unpack(chain.read(size)))
        for _, _, found in rows:
            if found & ~flags:
                raise Refused(f"{name} flags {found:#x} are not in {flags:#x}", BlockStatus.UNSUPP)
        for sector, count, _ in rows:
            if count > longest:
                raise Refused(f"{name} num_sectors {count} is more than {longest}")
            self._check(name, sector, count * SECTOR)
        return [(sector * SECTOR, count * SECTOR, found) for sector, count, found in rows if count]

    def _check(self, name: str, sector: int, size: int) -> None:
        """`size` bytes from `sector` on are whole sectors of the disk."""
        if size % SECTOR:
            raise Refused(f"{name} of {size} bytes, which is no multiple of {SECTOR}")
        if sector + size // SECTOR > self._sectors:
            raise Refused(f"{name} sector {sector} + {size // SECTOR} passes the disk's end {self._sectors}")

    def _check_writable(self, name: str) -> None:
        if self._disk.read_only:
            raise Refused(f"{name} to a read-only disk")

    def _settle(self) -> None:
        """Make a write durable for a driver that will never flush ("Device Operation")."""
        if not self.acknowledged & _FLUSH:
            self._disk.flush()

    def close(self) -> None:
        """Close the disk."""
        self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _config(disk: Disk, num_queues: int, queue_size: int) -> BlockConfig:
    """What the driver is told of a disk; header and status take two descriptors of a request."""
    config = {
        "capacity": disk.size // SECTOR,
        "seg_max": min(queue_size, USUAL_QUEUE_SIZE) - 2,
        "blk_size": SECTOR,
        "physical_block_exp": PHYSICAL_BLOCK_EXP,
        "min_io_size": 1 << PHYSICAL_BLOCK_EXP,
        "num_queues": num_queues,
    }
    if disk.read_only:
        return BlockConfig(**config)
    return BlockConfig(
        **config,
        max_discard_sectors=MAX_DISCARD,
        max_discard_seg=MAX_SEGMENTS,
        discard_sector_alignment=disk.granularity // SECTOR,
        max_write_zeroes_sectors=MAX_ZEROES,
        max_write_zeroes_seg=1,
        write_zeroes_may_unmap=1,
    )
