"""The back-end's side of shared memory: mapping a device's files into the regions that its driver sees."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from .errors import LocalProtocolError, RequestFailed
from .exports import FileRange
from .memory.table import AnyQuota, new_table
from .plain.choice import new_caller
from .plain.frames import REST, STALE, UNSENT
from .port import Port
from .protocol.numbers import MAP_RW, BackendRequest
from .protocol.payloads import Mmap
from .protocol.peers import Peer
from .protocol.regions import Mapping, check_map, check_unmap
from .transport.fds import HasFileno, fileno_of

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
File = int | HasFileno


class MapRequest(NamedTuple):
    """One mapping for `SharedMemory.map_many`: the arguments of `SharedMemory.map`."""

    file: File
    shm_offset: int
    len: int
    fd_offset: int = 0
    writable: bool = False


class SharedMemory:
    """One shared memory region of a device ("Shared Memory Regions").

    Mapping is possible from any thread, but only while a driver runs the device: a LocalProtocolError before its first ring
    has started, from its stop on, and during a reset. A reset takes every mapping away.
    """

    def __init__(self, shmid: int, size: int, port: Port, quota: AnyQuota) -> None:
        self.shmid = shmid
        self.size = size
        self._port, self._quota = port, quota
        self._maps = self._unmaps = 0
        self._table = new_table()
        self._caller = new_caller(port.line, shmid, size, self._table, quota)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.shmid}: {self.size:#x} bytes, {len(self.mappings)} mappings>"

    @property
    def maps(self) -> int:
        """How often a mapping was made."""
        return self._maps + self._caller.maps

    @property
    def unmaps(self) -> int:
        """How often one was taken away by request."""
        return self._unmaps + self._caller.unmaps

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, in order of its offset."""
        return tuple(self._table)

    def map(self, file: File, *, shm_offset: int, len: int, fd_offset: int = 0, writable: bool = False) -> None:
        """Show `len` bytes of `file`, from `fd_offset` on, at `shm_offset` of the region. Returns when they are there.

        Offsets and length are bytes, multiples of the page size. The file stays yours; close it when you like. Raises
        LocalProtocolError if the protocol does not allow it and OSError if the kernel does not (nothing is sent then),
        RequestFailed if the front-end says no, Disconnected or DeadlineExpired if there is no answer. ("SHMEM_MAP")
        """
        fd = file if type(file) is int else fileno_of(file)
        try:
            status = self._caller.map(fd, shm_offset, len, fd_offset, writable)
        except OverflowError:
            status = UNSENT
        if status == 0:
            return
        if status != UNSENT:
            body = self._body(shm_offset, len, fd_offset, MAP_RW if writable else 0)
            raise self._failure(MAP, status) or _map_failure(body, fd, status)
        _settle(self.map_many([MapRequest(fd, shm_offset, len, fd_offset, writable)]))

    def unmap(self, *, shm_offset: int, len: int) -> None:
        """Take one whole mapping away. Raises as `map` does. ("SHMEM_UNMAP")"""
        try:
            status = self._caller.unmap(shm_offset, len)
        except OverflowError:
            status = UNSENT
        if status == 0:
            return
        if status != UNSENT:
            raise self._failure(UNMAP, status) or RequestFailed("SHMEM_UNMAP", status)
        _settle(self.unmap_many([(shm_offset, len)]))

    def map_many(self, requests: Sequence[MapRequest]) -> list[RequestFailed | None]:
        """`map` each, with all requests under way at once: a result each, None for done or the RequestFailed.

        A LocalProtocolError or OSError for any of them means that none was sent.
        """
        rows = list(requests)
        files = [fileno_of(request.file) for request in rows]
        with self._port.lock:
            self._check_running(MAP)
            for fd in set(files):
                _check_sendable(fd)
            epoch = self._caller.epoch
            statuses = self._caller.map_many(rows, files)
            if statuses is None:
                raise self._explain_maps(rows)
            self._check_result(MAP, len(statuses) == len(rows), epoch)
        if not any(statuses):
            return [None] * statuses.__len__()
        return [self._map_result(*row) for row in zip(rows, files, statuses, strict=True)]

    def unmap_many(self, ranges: Sequence[tuple[int, int]]) -> list[RequestFailed | None]:
        """`unmap` each (shm_offset, len), with all requests under way at once: a result each, as `map_many`."""
        rows = list(ranges)
        with self._port.lock:
            self._check_running(UNMAP)
            epoch = self._caller.epoch
            statuses = self._caller.unmap_many(rows)
            if statuses is None:
                raise self._explain_unmaps(rows)
            self._check_result(UNMAP, len(statuses) == len(rows), epoch)
        return [RequestFailed("SHMEM_UNMAP", status) if status else None for status in statuses]

    @property
    def peer(self) -> Peer | None:
        """The front-end, if it is known by name, and so are its faults."""
        return self._port.peer

    def await_export(self, requests: Iterable[MapRequest], timeout: float) -> bool:
        """Whether the front-end has told of these mappings as memory, once it has or `timeout` seconds have passed.

        QEMU does so when they are there for all of the guest's processors, which is after its answers; others never do.
        """
        return self._port.exports.wait(map(_file_range, requests), timeout)

    def forget(self) -> None:
        """The front-end has dropped every mapping, by a reset or its end. (For the Backend.)"""
        self._caller.forget()

    def _failure(self, request: BackendRequest, status: int) -> Exception | None:
        """The exception for a result of the plain way that is no status of the peer."""
        if status == REST:
            try:
                return self._port.lose(request)
            finally:
                self._port.lock.release()
        return _stale(request) if status == STALE else None

    def _check_running(self, request: BackendRequest) -> None:
        """Raise unless a driver runs the device and the front-end takes requests."""
        if not self._port.running:
            name = request.name
            text = "no driver runs the device (its rings have not started, were stopped, or it was reset)"
            raise LocalProtocolError(
                f"{name} is not possible now: {text}", request=name, field="rings", value="stopped", limit="started"
            )
        self._port.check(request)

    def _check_result(self, request: BackendRequest, whole: bool, epoch: int) -> None:
        """Raise if the channel was lost or the device reset while requests were under way."""
        if not whole:
            raise self._port.lose(request)
        if epoch != self._caller.epoch:
            raise _stale(request)

    def _map_result(self, row: MapRequest, fd: int, status: int) -> RequestFailed | None:
        body = self._body(row.shm_offset, row.len, row.fd_offset, MAP_RW if row.writable else 0) if status else None
        return _map_failure(body, fd, status) if body else None

    def _explain_maps(self, rows: Sequence[MapRequest]) -> LocalProtocolError:
        """Why the region does not take all of these mappings beside what is there and beside each other."""
        bodies = [self._body(row.shm_offset, row.len, row.fd_offset, MAP_RW if row.writable else 0) for row in rows]
        for body in bodies:
            check_map(body, self.size, self._table, LocalProtocolError)
        ordered = sorted(bodies, key=lambda body: body.shm_offset)
        for before, after in pairwise(ordered):
            end = before.shm_offset + before.len
            if after.shm_offset < end:
                text = f"SHMEM_MAP shm_offset {after.shm_offset:#x} overlaps another request that ends at {end:#x}"
                return LocalProtocolError(text, request="SHMEM_MAP", field="shm_offset", value=after.shm_offset, limit=end)
        full = self._quota.exhausted() or self._quota
        text = f"SHMEM_MAP passes the {full.name}'s quota of {full.limit} live mappings"
        return LocalProtocolError(text, request="SHMEM_MAP", field="mappings", value=full.used, limit=full.limit)

    def _explain_unmaps(self, rows: Sequence[tuple[int, int]]) -> LocalProtocolError:
        """Why these are not all whole mappings, each named once."""
        for row in rows:
            check_unmap(self._body(*row, request=UNMAP), self.size, self._table, LocalProtocolError)
        twice = next(offset for at, (offset, _) in enumerate(rows) if offset in [each[0] for each in rows[:at]])
        text = f"SHMEM_UNMAP shm_offset {twice:#x} is named twice, which is no mapping the second time"
        return LocalProtocolError(text, request="SHMEM_UNMAP", field="shm_offset", value=twice, limit="once")

    def _body(self, shm_offset: int, len: int, fd_offset: int = 0, flags: int = 0, *, request: BackendRequest = MAP) -> Mmap:
        """The payload; LocalProtocolError if a number does not fit into 64 bits, TypeError if it is none."""
        for field, value in (("shm_offset", shm_offset), ("len", len), ("fd_offset", fd_offset)):
            if not isinstance(value, int):
                raise TypeError(f"{field} must be an int, not {type(value).__name__}")
            if not 0 <= value < 1 << 64:
                text = f"{request.name} {field} {value} is not between 0 and 2^64"
                raise LocalProtocolError(text, request=request.name, field=field, value=value, limit=1 << 64)
        return Mmap(self.shmid, fd_offset, shm_offset, len, flags)


def _file_range(request: MapRequest) -> FileRange:
    found = os.fstat(fileno_of(request.file))
    return FileRange(found.st_dev, found.st_ino, request.fd_offset, request.len)


def _check_sendable(fd: int) -> None:
    """OSError unless it is an fd; LocalProtocolError if it is of a path only, which costs QEMU 11.1 its channel."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        text = f"SHMEM_MAP fd {fd} is open for its path only (O_PATH): open the file for reading"
        raise LocalProtocolError(text, request="SHMEM_MAP", field="fd", value=fd, limit="open for reading")


def _settle(results: list[RequestFailed | None]) -> None:
    """Raise the failure of a request that was alone."""
    for failure in results:
        if failure is not None:
            raise failure


def _stale(request: BackendRequest) -> LocalProtocolError:
    name = request.name
    return LocalProtocolError(f"{name}: the device was reset while the request was under way", request=name)


def _map_failure(body: Mmap, fd: int, status: int) -> RequestFailed:
    """The exception for a status that is not 0, with the likely reason if the file shows one."""
    why = _likely_reason(body, fd)
    text = f"SHMEM_MAP shm_offset {body.shm_offset:#x} len {body.len:#x} was refused by the front-end (status {status:#x})"
    return RequestFailed("SHMEM_MAP", status, f"{text}: {why}" if why else text)


def _likely_reason(body: Mmap, fd: int) -> str:
    """What is wrong with the file, as far as it can be seen from here."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file or memfd"
        if status.st_size < body.fd_offset + body.len:
            end = body.fd_offset + body.len
            return f"the file has {status.st_size:#x} bytes, the mapping needs {end:#x}"
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            return "the fd is not open for reading and writing, which QEMU 11.1 wants even for read-only mappings"
    except OSError as error:
        return f"the fd is no good: {error.strerror}"
    return ""
