"""The back-end's side of shared memory: mapping a device's files into the regions that its driver sees."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from . import _native
from .counters import Counters
from .errors import LocalProtocolError, RequestFailed
from .memory.table import AnyQuota, new_table
from .port import Port
from .protocol.numbers import MAP_RW, BackendRequest
from .protocol.payloads import Mmap
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

    def __init__(self, shmid: int, size: int, port: Port, quota: AnyQuota, counters: Counters) -> None:
        self.shmid = shmid
        self.size = size
        self._port, self._quota, self._counters = port, quota, counters
        self._table = new_table()
        self._epoch = 0
        self._caller = self._compiled()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, in order of its offset."""
        return tuple(self._table)

    def map(self, file: File, *, shm_offset: int, len: int, fd_offset: int = 0, writable: bool = False) -> None:
        """Show `len` bytes of `file`, from `fd_offset` on, at `shm_offset` of the region. Returns when they are there.

        Offsets and length are bytes, multiples of the page size. The file stays yours; close it when you like. Raises
        LocalProtocolError if the protocol does not allow it (nothing is sent), RequestFailed if the front-end says no,
        Disconnected or DeadlineExpired if there is no answer. ("SHMEM_MAP")
        """
        fd = file if type(file) is int else fileno_of(file)
        if self._caller is not None:
            try:
                status = self._caller.map(fd, shm_offset, len, fd_offset, writable)
            except OverflowError:
                status = _native.channel.UNSENT
            if status == 0:
                return
            if status != _native.channel.UNSENT:
                body = self._body(shm_offset, len, fd_offset, MAP_RW if writable else 0)
                raise self._failure(MAP, status) or _map_failure(body, fd, status)
        _settle(self.map_many([MapRequest(fd, shm_offset, len, fd_offset, writable)]))

    def unmap(self, *, shm_offset: int, len: int) -> None:
        """Take one whole mapping away. Raises as `map` does. ("SHMEM_UNMAP")"""
        if self._caller is not None:
            try:
                status = self._caller.unmap(shm_offset, len)
            except OverflowError:
                status = _native.channel.UNSENT
            if status == 0:
                return
            if status != _native.channel.UNSENT:
                raise self._failure(UNMAP, status) or RequestFailed("SHMEM_UNMAP", status)
        _settle(self.unmap_many([(shm_offset, len)]))

    def map_many(self, requests: Sequence[MapRequest]) -> list[RequestFailed | None]:
        """`map` each, with all requests under way at once: a result each, None for done or the RequestFailed.

        A LocalProtocolError for any of them means that none was sent.
        """
        with self._port.lock:
            self._check_running("SHMEM_MAP")
            fds = [fileno_of(request.file) for request in requests]
            made = [Mapping(each.shm_offset, each.len, each.fd_offset, each.writable) for each in requests]
            bodies = [self._body(m.shm_offset, m.len, m.fd_offset, MAP_RW if m.writable else 0) for m in made]
            self._check_new(bodies, made)
            statuses = self._ask(MAP, bodies, fds)
            for mapping, status in zip(made, statuses, strict=True):
                if not status:
                    self._table.insert(mapping)
                    self._quota.add(1)
                    self._counters.maps += 1
        return [_map_failure(*row) if row[2] else None for row in zip(bodies, fds, statuses, strict=True)]

    def unmap_many(self, ranges: Sequence[tuple[int, int]]) -> list[RequestFailed | None]:
        """`unmap` each (shm_offset, len), with all requests under way at once: a result each, as `map_many`."""
        with self._port.lock:
            self._check_running("SHMEM_UNMAP")
            bodies = [self._body(*each) for each in ranges]
            gone = [check_unmap(body, self.size, self._table, LocalProtocolError) for body in bodies]
            if len(set(gone)) < len(gone):
                raise LocalProtocolError("SHMEM_UNMAP names a mapping twice", request="SHMEM_UNMAP")
            statuses = self._ask(UNMAP, bodies, [-1] * len(bodies))
            for mapping, status in zip(gone, statuses, strict=True):
                if not status:
                    self._table.remove(mapping)
                    self._quota.add(-1)
                    self._counters.unmaps += 1
        return [RequestFailed("SHMEM_UNMAP", status) if status else None for status in statuses]

    def forget(self) -> None:
        """The front-end has dropped every mapping, by a reset or its end. (For the Backend.)"""
        self._epoch += 1
        if self._caller:
            self._caller.epoch = self._epoch
        self._quota.add(-len(self._table))
        self._table.clear()

    def _compiled(self) -> _native.channel.Caller | None:
        line, table, quota = self._port.line, self._table, self._quota
        if line is None or not isinstance(table, _native.window.MappingTable):
            return None
        if not isinstance(quota, _native.window.Quota):
            return None
        return _native.channel.Caller(line, self.shmid, self.size, table, quota)

    def _ask(self, request: BackendRequest, bodies: Sequence[Mmap], fds: Sequence[int]) -> list[int]:
        """Send all and return their statuses; an exception if the channel is lost or the device was reset meanwhile."""
        epoch, line = self._epoch, self._port.line
        if self._caller and line and line.fd >= 0 and request.value in (MAP, UNMAP):
            for fd in fds:
                if fd >= 0:
                    os.fstat(fd)
            rows = [(body.shm_offset, body.len, body.fd_offset, body.flags) for body in bodies]
            statuses = self._caller.exchange(request, rows, list(fds))
            if statuses.__len__() < bodies.__len__():
                raise self._port.lose(request, line.take())
        else:
            sent = zip(bodies, fds, strict=True)
            statuses = self._port.send_all([(request, body, (fd,) if fd >= 0 else ()) for body, fd in sent])
        if epoch != self._epoch:
            raise _stale(request)
        return statuses

    def _failure(self, request: BackendRequest, status: int) -> Exception | None:
        """The exception for a result of the compiled call that is no status of the peer."""
        line = self._port.line
        if status == _native.channel.REST and line is not None:
            with self._port.lock:
                return self._port.lose(request, line.take())
        return _stale(request) if status == _native.channel.STALE else None

    def _check_running(self, name: str) -> None:
        if not self._port.running:
            raise LocalProtocolError(
                f"{name} is not possible now: no driver runs the device (its rings have not started, were stopped, or it "
                "was reset)",
                request=name,
            )

    def _check_new(self, bodies: Sequence[Mmap], made: Sequence[Mapping]) -> None:
        """The region takes all of the mappings beside what is there and beside each other."""
        for body in bodies:
            check_map(body, self.size, self._table, LocalProtocolError)
        ordered = sorted(made)
        for before, after in pairwise(ordered):
            if after.shm_offset < before.end:
                raise LocalProtocolError(
                    f"SHMEM_MAP shm_offset {after.shm_offset:#x} + len {after.len:#x} overlaps another request that ends "
                    f"at {before.end:#x}",
                    request="SHMEM_MAP",
                    field="shm_offset",
                    value=after.shm_offset,
                    limit=before.end,
                )
        if (full := self._quota.exhausted()) or self._quota.used + len(made) > self._quota.limit:
            full = full or self._quota
            raise LocalProtocolError(
                f"SHMEM_MAP passes the {full.name}'s quota of {full.limit} live mappings",
                request="SHMEM_MAP",
                field="mappings",
                value=full.used,
                limit=full.limit,
            )

    def _body(self, shm_offset: int, len: int, fd_offset: int = 0, flags: int = 0) -> Mmap:
        """The payload; LocalProtocolError if a number does not fit into 64 bits."""
        for field, value in (("shm_offset", shm_offset), ("len", len), ("fd_offset", fd_offset)):
            if not 0 <= value < 1 << 64:
                raise LocalProtocolError(f"SHMEM_MAP {field} {value} is not between 0 and 2^64", field=field, value=value)
        return Mmap(self.shmid, fd_offset, shm_offset, len, flags)


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
