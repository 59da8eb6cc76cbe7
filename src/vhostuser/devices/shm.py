"""Files in shared memory regions, from the start or on request: the device behind `vhu-shm`."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
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
from ..virtio.mapper import ENTRY, REQUEST, WRITABLE, MapperOp, MapperRequest, MapperStatus
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


@dataclass(frozen=True, slots=True)
class Offer:
    """A file that the driver may have mapped, any part of it; and written to, if it is writable."""

    path: str
    writable: bool = False


class MappedFiles(Device):
    """Whole files in shared memory regions, mapped as soon as a driver takes the device, and parts of others on request.

    All queues take the requests of `virtio.mapper`. What is none, because there is nothing to read or no room for an answer,
    comes back empty: so does whatever a driver of another device does first. The configuration space is zeros. A placed file
    is mapped in the length that it has now. Raises FileError for one that can't be.
    """

    config = bytes(MAX_CONFIG)

    def __init__(
        self,
        regions: MappingOf[int, int],
        placements: Sequence[Placement],
        offers: Sequence[Offer] = (),
        *,
        num_queues: int = 8,
    ) -> None:
        self.shared_memory = dict(regions)
        self.queue_sizes = (QUEUE_SIZE,) * num_queues
        self._operations: dict[int, Callable[[MapperRequest, int], bytes]] = {
            MapperOp.MAP: self._map,
            MapperOp.UNMAP: self._unmap,
            MapperOp.MAPPINGS: self._mappings,
        }
        self._open: list[OwnedFd] = []
        self._files: list[tuple[Placement, OwnedFd, int]] = []
        tables = {shmid: MappingTable() for shmid in regions}
        try:
            for placement in placements:
                file = self._take(placement, "--map")
                size = _whole_pages(placement, file)
                _check_place(placement, size, regions, tables)
                self._files.append((placement, file, size))
            self._offers = [(offer, self._take(offer, "--file")) for offer in offers]
        except BaseException:
            self.close()
            raise

    def _take(self, wanted: Placement | Offer, option: str) -> OwnedFd:
        """The open file, closed with the device."""
        file = open_file(wanted, option)
        self._open.append(file)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            text = f"cannot map {printable(wanted.path)}: it is no regular file"
            raise FileError(text, f"try: another FILE in {option}")
        return file

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Do what the driver asks for, and say how that went."""
        room = chain.writable_size
        if not room or not chain.readable_size:
            return
        try:
            status, more = MapperStatus.OK, self._perform(chain.read(REQUEST.size), room - 1)
        except RequestFailed as error:
            status, more = MapperStatus.REFUSED, str(error).encode()
        except LocalProtocolError as error:
            status, more = MapperStatus.INVALID, str(error).encode()
        chain.write((bytes([status]) + more)[:room])

    def _perform(self, data: bytes, room: int) -> bytes:
        if len(data) < REQUEST.size:
            raise _wrong("size", len(data), f"not the {REQUEST.size} bytes of a request")
        request = MapperRequest.unpack(data)
        if request.op not in self._operations:
            raise _wrong("op", request.op, f"none of {', '.join(f'{op:d} ({op.name})' for op in MapperOp)}")
        if request.shmid not in self.shm:
            raise _wrong("shmid", request.shmid, "no region of this device")
        return self._operations[request.op](request, room)

    def _map(self, request: MapperRequest, room: int) -> bytes:
        if request.file >= len(self._offers):
            raise _wrong("file", request.file, f"not below {len(self._offers)}, the number of files")
        offer, file = self._offers[request.file]
        if request.flags & ~WRITABLE:
            raise _wrong("flags", request.flags, f"not within {WRITABLE:#x}")
        if request.flags & WRITABLE and not offer.writable:
            raise _wrong("flags", request.flags, f"WRITABLE, but file {request.file} is read-only")
        region, writable = self.shm[request.shmid], bool(request.flags & WRITABLE)
        region.map(file, shm_offset=request.shm_offset, len=request.len, fd_offset=request.fd_offset, writable=writable)
        return b""

    def _unmap(self, request: MapperRequest, room: int) -> bytes:
        self.shm[request.shmid].unmap(shm_offset=request.shm_offset, len=request.len)
        return b""

    def _mappings(self, request: MapperRequest, room: int) -> bytes:
        """From `shm_offset` on, as many as there is room for."""
        found = [each for each in self.shm[request.shmid].mappings if each.shm_offset >= request.shm_offset]
        return b"".join(ENTRY.pack(*each) for each in found[: room // ENTRY.size])

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


def open_file(wanted: Placement | Offer, option: str) -> OwnedFd:
    """The file, open for reading and writing where that is possible: QEMU wants it even for read-only mappings.

    Its FileError names the `option` that has it.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return OwnedFd(os.open(wanted.path, flags | os.O_RDWR))
    except OSError as error:
        if wanted.writable or error.errno not in _NOT_WRITABLE:
            raise _cannot_open(wanted, option, error) from None
        log.debug("%s is opened read-only: %s", printable(wanted.path), error.strerror)
    try:
        return OwnedFd(os.open(wanted.path, flags | os.O_RDONLY))
    except OSError as error:
        raise _cannot_open(wanted, option, error) from None


def _cannot_open(wanted: Placement | Offer, option: str, error: OSError) -> FileError:
    without = wanted.writable and error.errno in _NOT_WRITABLE
    return cannot_open(wanted.path, error, "try: without :rw" if without else f"try: check FILE in {option}")


def _whole_pages(placement: Placement, file: OwnedFd) -> int:
    """The file's size, which has to be whole pages: no front-end maps what lies behind the end of a file."""
    size, name = os.fstat(file.fileno()).st_size, printable(placement.path)
    rest = size % PAGE
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


def _wrong(field: str, value: int, why: str) -> LocalProtocolError:
    return LocalProtocolError(f"request {field} {value:#x} is {why}", request="request", field=field, value=value)
