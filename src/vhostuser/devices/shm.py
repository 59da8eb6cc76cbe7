"""Files in shared memory regions, and nothing else: the device behind `vhu-shm`."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from ..device import Device
from ..errors import LocalProtocolError, RequestFailed
from ..limited_log import printable
from ..protocol.numbers import MAX_CONFIG, PAGE
from ..protocol.payloads import Mmap
from ..protocol.regions import Mapping, MappingTable, check_map
from ..transport.fds import OwnedFd
from ..virtio.chain import DescriptorChain
from .file_error import FileError, cannot_open

log = logging.getLogger(__name__)
QUEUE_SIZE: Final = 1024
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})


@dataclass(frozen=True, slots=True)
class Placement:
    """A whole file, and where its first byte is to be seen."""

    shmid: int
    shm_offset: int
    path: str
    writable: bool = False

    def __str__(self) -> str:
        return f"{printable(self.path)} at {self.shm_offset:#x} of region {self.shmid}"


class MappedFiles(Device):
    """Whole files in shared memory regions, mapped as soon as a driver takes the device.

    It has queues and a configuration space, since drivers want some, but no use for them: requests come back empty, the
    configuration is zeros. A file is mapped in the length that it has now. Raises FileError for one that can't be.
    """

    config = bytes(MAX_CONFIG)

    def __init__(self, regions: MappingOf[int, int], placements: Sequence[Placement], *, num_queues: int = 8) -> None:
        self.shared_memory = dict(regions)
        self.queue_sizes = (QUEUE_SIZE,) * num_queues
        self._open: list[OwnedFd] = []
        self._files: list[tuple[Placement, OwnedFd, int]] = []
        tables = {shmid: MappingTable() for shmid in regions}
        try:
            for placement in placements:
                file = open_file(placement)
                self._open.append(file)
                size = _whole_pages(placement, file)
                _check_place(placement, size, regions, tables)
                self._files.append((placement, file, size))
        except BaseException:
            self.close()
            raise

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Give the request back as it is."""

    def driver_ready(self) -> None:
        """Map every file; one that the front-end does not take is left out."""
        for placement, file, size in self._files:
            region = self.shm[placement.shmid]
            try:
                region.map(file, shm_offset=placement.shm_offset, len=size, writable=placement.writable)
            except RequestFailed as error:
                log.warning("%s is not mapped: %s", placement, error)
            else:
                log.info("mapped %s, %d bytes, %s", placement, size, "read-write" if placement.writable else "read-only")

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_file(placement: Placement) -> OwnedFd:
    """The file, open for reading and writing where that is possible: QEMU wants it even for read-only mappings."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return OwnedFd(os.open(placement.path, flags | os.O_RDWR))
    except OSError as error:
        if placement.writable or error.errno not in _NOT_WRITABLE:
            raise _cannot_open(placement, error) from None
        log.debug("%s is opened read-only: %s", placement, error.strerror)
    try:
        return OwnedFd(os.open(placement.path, flags | os.O_RDONLY))
    except OSError as error:
        raise _cannot_open(placement, error) from None


def _cannot_open(placement: Placement, error: OSError) -> FileError:
    advice = "try: without :rw" if placement.writable and error.errno in _NOT_WRITABLE else "try: check FILE in --map"
    return cannot_open(placement.path, error, advice)


def _whole_pages(placement: Placement, file: OwnedFd) -> int:
    """The file's size, which has to be whole pages: no front-end maps what lies behind the end of a file."""
    status, name = os.fstat(file.fileno()), printable(placement.path)
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"cannot map {name}: it is no regular file", "try: another FILE in --map")
    size, rest = status.st_size, status.st_size % PAGE
    if rest or not size:
        why = f"its size, {size} bytes, is no multiple of the page size, {PAGE}" if rest else "it is empty"
        raise FileError(f"cannot map {name}: {why}", f"try: truncate -s {size - rest + PAGE} FILE")
    return size


def _check_place(
    placement: Placement, size: int, regions: MappingOf[int, int], tables: MappingOf[int, MappingTable]
) -> None:
    """The file fits into its region, beside the files before it; they are now in `tables`."""
    shmid, offset = placement.shmid, placement.shm_offset
    if shmid not in regions:
        raise FileError(f"cannot map {placement}: there is no such region", f"try: --region {shmid}:SIZE")
    try:
        check_map(Mmap(shmid, 0, offset, size), regions[shmid], tables[shmid], LocalProtocolError)
    except LocalProtocolError as error:
        raise FileError(f"cannot map {placement}: {error}", "try: another OFFSET in --map, or a larger --region") from None
    tables[shmid].insert(Mapping(offset, size, 0, placement.writable))
