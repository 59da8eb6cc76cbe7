"""The plain way of SHMEM_MAP and SHMEM_UNMAP, in as few steps as Python can: the twins of `_native.channel`.

Most requests are entirely right. These classes handle those and nothing else: `Server` receives, maps and acknowledges for a
front-end, `Caller` checks, sends and waits for a device. Whatever is not plain they hand on as it came, or leave unsent, and
`frontend`, `port` and `shared_memory` go the long way, which knows every rule and has words for it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, TypeAlias

from . import _native
from .memory.core import WindowCore
from .memory.table import AnyCore, AnyQuota, AnyTable
from .protocol.numbers import END_OF_FILE_OFFSETS, HEADER_SIZE, MAX_FDS, NEED_REPLY, PAGE, REPLY, VERSION, BackendRequest
from .protocol.payloads import HEADER, U64, Mmap
from .protocol.regions import Mapping, MappingTable, Quota

if TYPE_CHECKING:
    from ._native import channel as compiled

AnyServer: TypeAlias = "Server | compiled.Server"
AnyLine: TypeAlias = "Line | compiled.Line"
AnyCaller: TypeAlias = "Caller | compiled.Caller"

MapRow: TypeAlias = tuple[object, int, int, int, bool]
"""shm_offset, len, fd_offset and writable of a request, behind its file."""

EXPIRED, TAKE, NOT_TAKEN = -1, -2, -3
"""What `Server.run` returns instead of an fd."""
UNSENT, REST, STALE = -11, -12, -13
"""What `Caller.map` and `Caller.unmap` return instead of a status."""

_MAP, _UNMAP = int(BackendRequest.SHMEM_MAP), int(BackendRequest.SHMEM_UNMAP)
_BODY: Final = Mmap.STRUCT
_REQUEST: Final = struct.Struct("=" + HEADER.format.lstrip("=") + Mmap.STRUCT.format.lstrip("="))
_ASKING: Final = VERSION | NEED_REPLY
_MAP_HEADER: Final = HEADER.pack(_MAP, _ASKING, _BODY.size)
_UNMAP_HEADER: Final = HEADER.pack(_UNMAP, _ASKING, _BODY.size)
_ANSWER: Final = {number: HEADER.pack(number, VERSION | REPLY, U64.STRUCT.size) for number in (_MAP, _UNMAP)}
_YES: Final = {number: header + U64(0).pack() for number, header in _ANSWER.items()}
_ACK_SIZE: Final = len(_YES[_MAP])
_CONTROL: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_RECEIVE: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)
_CTRUNC: Final = int(socket.MSG_CTRUNC)
_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ONE_FD: Final = struct.Struct("@i")
AT_ONCE: Final = 64
"""Requests under way together: their acknowledgements, unread, must fit into the socket."""


class Server:
    """A front-end's receiving loop on the back-end channel."""

    def __init__(self, sock: socket.socket, windows: dict[int, WindowCore]) -> None:
        self.messages = self.sent_acks = self.maps = self.unmaps = 0
        self._fd, self._windows = sock.fileno(), windows
        self._receive, self._recv, self._send = sock.recvmsg, sock.recv, sock.send
        self._data, self._truncated = b"", False
        self._fds: list[int] = []
        self._poll = select.poll()
        self._watched: tuple[int, ...] = ()

    def run(self, others: Sequence[int], seconds: float) -> int:
        """Answer requests until one of the fds `others` is readable, and return it.

        EXPIRED after `seconds` (negative: never), TAKE if something is there for `take`, NOT_TAKEN if the back-end does not
        take its acknowledgements.
        """
        poll, own = self._watch(others).poll, self._fd
        deadline, left = time.monotonic() + seconds, seconds
        while True:
            ready = poll(None if seconds < 0 else left * 1000)
            if not ready:
                return EXPIRED
            if ready[-1][0] == own or any(fd == own for fd, _ in ready):
                if result := self._one():
                    return result
            else:
                return ready[0][0]
            if seconds >= 0 and (left := deadline - time.monotonic()) <= 0:
                return next((fd for fd, _ in poll(0) if fd != own), EXPIRED)

    def take(self) -> tuple[bytes, list[int], bool]:
        """The bytes and fd numbers that were read and not handled, and whether fds were lost with them."""
        rest = self._data, self._fds, self._truncated
        self._data, self._fds, self._truncated = b"", [], False
        return rest

    def _watch(self, others: Sequence[int]) -> select.poll:
        wanted = (*others, self._fd)
        if wanted != self._watched:
            self._poll, self._watched = select.poll(), wanted
            for fd in wanted:
                self._poll.register(fd, select.POLLIN)
        return self._poll

    def _one(self) -> int:
        """Handle one request: 0, or what `run` returns for it."""
        try:
            data, control, flags, _ = self._receive(HEADER_SIZE, _CONTROL, _RECEIVE)
        except BlockingIOError:
            return 0
        except OSError:
            return TAKE
        if control:
            payload = control[0][2]
            if (
                data == _MAP_HEADER
                and len(payload) == _ONE_FD.size
                and control[0][:2] == _RIGHTS
                and len(control) == 1
                and not flags & _CTRUNC
            ):
                return self._map(_ONE_FD.unpack(payload)[0])
        elif data == _UNMAP_HEADER and not flags & _CTRUNC:
            return self._unmap()
        self._data, self._fds, self._truncated = data, _fds_in(control), bool(flags & _CTRUNC)
        return TAKE

    def _map(self, fd: int) -> int:
        body = self._body()
        if len(body) == _BODY.size:
            shmid, fd_offset, shm_offset, length, flags = _BODY.unpack(body)
            window = self._windows.get(shmid)
            if window and window.map(fd, shm_offset, length, fd_offset, flags):
                os.close(fd)
                self.maps += 1
                return self._acknowledge(_MAP)
        self._data, self._fds = _MAP_HEADER + body, [fd]
        return TAKE

    def _unmap(self) -> int:
        body = self._body()
        if len(body) == _BODY.size:
            shmid, _, shm_offset, length, _ = _BODY.unpack(body)
            window = self._windows.get(shmid)
            if window and window.unmap(shm_offset, length):
                self.unmaps += 1
                return self._acknowledge(_UNMAP)
        self._data = _UNMAP_HEADER + body
        return TAKE

    def _body(self) -> bytes:
        try:
            return self._recv(_BODY.size, _DONTWAIT)
        except OSError:
            return b""

    def _acknowledge(self, request: int) -> int:
        self.messages += 1
        self.sent_acks += 1
        try:
            sent = self._send(_YES[request], _NOSIGNAL)
        except BlockingIOError:
            return NOT_TAKEN
        except OSError:
            return TAKE
        return 0 if sent == _ACK_SIZE else NOT_TAKEN


def _fds_in(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The fd numbers among ancillary data."""
    fds = array.array("i")
    for level, kind, payload in control:
        if (level, kind) == _RIGHTS:
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return list(fds)


class Line:
    """What the regions of a device share: the back-end channel, whether it may be used, and the lock for it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self.running, self.seconds = lock, False, 10.0
        self.socket: socket.socket | None = None
        self._poll = select.poll()
        self._rest: tuple[bytes, list[int], int] = (b"", [], 0)

    def use(self, sock: socket.socket | None, seconds: float) -> None:
        """Send on `sock` from now on, or on nothing; wait at most `seconds` for an acknowledgement."""
        self.socket, self.seconds, self._poll = sock, seconds, select.poll()
        if sock:
            self._poll.register(sock, select.POLLIN)

    def take(self) -> tuple[bytes, list[int], int]:
        """What came instead of whole acknowledgements: bytes, fd numbers, and the errno that ended it, or 0."""
        rest, self._rest = self._rest, (b"", [], 0)
        return rest

    def ask(self, request: int, body: tuple[int, int, int, int, int], fd: int) -> int:
        """Send one request in one piece: 0, UNSENT if an fd is none, REST if it did not go out whole."""
        control = [(*_RIGHTS, _ONE_FD.pack(fd))] if fd >= 0 else ()
        data = _REQUEST.pack(request, _ASKING, _BODY.size, *body)
        try:
            if self.socket and self.socket.sendmsg((data,), control, _NOSIGNAL) == len(data):
                return 0
            self._rest = (b"", [], errno.EAGAIN)
        except OSError as error:
            if error.errno == errno.EBADF:
                return UNSENT
            self._rest = (b"", [], error.errno or errno.EPIPE)
        return REST

    def answer(self, request: int) -> int:
        """Wait for the acknowledgement of one request: its status, or REST."""
        data, deadline = b"", time.monotonic() + self.seconds
        try:
            while len(data) < _ACK_SIZE and _ANSWER[request].startswith(data[:HEADER_SIZE]):
                if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise BlockingIOError(errno.EAGAIN, "no answer")
                if self.socket is None:
                    raise OSError(0, "the end")
                more, control, flags, _ = self.socket.recvmsg(_ACK_SIZE - len(data), _CONTROL, _RECEIVE)
                if not more:
                    raise OSError(0, "the end")
                data += more
                if control or flags & _CTRUNC:
                    self._rest = (data, _fds_in(control), 0) if control else (b"", [], errno.EMFILE)
                    return REST
        except OSError as error:
            self._rest = (data, [], error.errno or 0)
            return REST
        if data == _YES[request]:
            return 0
        if data[:HEADER_SIZE] == _ANSWER[request]:
            return int.from_bytes(data[HEADER_SIZE:], sys.byteorder)
        self._rest = (data, [], 0)
        return REST


class Caller:
    """The map and unmap of one region of a device."""

    def __init__(self, line: Line, shmid: int, size: int, table: MappingTable, quota: Quota) -> None:
        self.epoch = 0
        self.maps = self.unmaps = 0
        self._line, self._shmid, self._size, self._table, self._quota = line, shmid, size, table, quota

    def map(self, fd: int, shm_offset: int, len: int, fd_offset: int, writable: bool) -> int:
        """SHMEM_MAP: the status that came back, UNSENT (ask the long way), REST or STALE (reset meanwhile).

        With REST the lock stays held: `Line.take` says what came, and nobody may change the channel before.
        """
        line, status = self._line, UNSENT
        if not line.running or line.socket is None or not line.lock.acquire(False):
            return UNSENT
        try:
            if not _is_sendable(fd) or not self._is_plain(shm_offset, len, fd_offset) or self._quota.exhausted():
                return UNSENT
            epoch, flags = self.epoch, 1 if writable else 0
            if status := line.ask(_MAP, (self._shmid, fd_offset, shm_offset, len, flags), fd) or line.answer(_MAP):
                return status
            if epoch != self.epoch:
                return STALE
            self._add(Mapping(shm_offset, len, fd_offset, bool(writable)))
            self.maps += 1
            return 0
        finally:
            if status != REST:
                line.lock.release()

    def unmap(self, shm_offset: int, len: int) -> int:
        """SHMEM_UNMAP: as `map`."""
        line, status = self._line, UNSENT
        if not line.running or line.socket is None or not line.lock.acquire(False):
            return UNSENT
        try:
            mapping = self._table.exact(shm_offset, len) if _are_ints(shm_offset, len) else None
            if mapping is None:
                return UNSENT
            epoch = self.epoch
            if status := line.ask(_UNMAP, (self._shmid, 0, shm_offset, len, 0), -1) or line.answer(_UNMAP):
                return status
            if epoch != self.epoch:
                return STALE
            self._remove(mapping)
            self.unmaps += 1
            return 0
        finally:
            if status != REST:
                line.lock.release()

    def map_many(self, requests: Sequence[MapRow], files: list[int]) -> list[int] | None:
        """SHMEM_MAP for each of `requests` with its fd of `files`, for SharedMemory, which holds the lock.

        The statuses that came back, fewer if the channel was lost; None, with nothing sent, if anything is not plain.
        """
        taken: list[Mapping] = []
        for _, shm_offset, length, fd_offset, writable in requests:
            if not self._is_plain(shm_offset, length, fd_offset) or self._quota.exhausted():
                break
            taken.append(Mapping(shm_offset, length, fd_offset, bool(writable)))
            self._add(taken[-1])
        if len(taken) < len(requests):
            for mapping in taken:
                self._remove(mapping)
            return None
        epoch, rows = self.epoch, [(self._shmid, m.fd_offset, m.shm_offset, m.len, int(m.writable)) for m in taken]
        statuses = self._exchange(_MAP, rows, files)
        if epoch == self.epoch:
            for mapping, status in zip_longest(taken, statuses):
                if status == 0:
                    self.maps += 1
                else:
                    self._remove(mapping)
        return statuses

    def unmap_many(self, ranges: list[tuple[int, int]]) -> list[int] | None:
        """SHMEM_UNMAP for each (shm_offset, len) of `ranges`: as `map_many`."""
        taken: list[Mapping] = []
        for shm_offset, length in ranges:
            mapping = self._table.exact(shm_offset, length) if _are_ints(shm_offset, length) else None
            if mapping is None:
                break
            taken.append(mapping)
            self._remove(mapping)
        if len(taken) < len(ranges):
            for mapping in taken:
                self._add(mapping)
            return None
        epoch, rows = self.epoch, [(self._shmid, 0, m.shm_offset, m.len, 0) for m in taken]
        statuses = self._exchange(_UNMAP, rows, [-1] * len(rows))
        if epoch == self.epoch:
            for mapping, status in zip_longest(taken, statuses):
                if status == 0:
                    self.unmaps += 1
                else:
                    self._add(mapping)
        return statuses

    def _is_plain(self, shm_offset: int, len: int, fd_offset: int) -> bool:
        """The region takes the mapping, as far as numbers say."""
        if not _are_ints(shm_offset, len, fd_offset):
            return False
        if len <= 0 or shm_offset < 0 or fd_offset < 0 or (shm_offset | len | fd_offset) & (PAGE - 1):
            return False
        if shm_offset + len > self._size or fd_offset + len >= END_OF_FILE_OFFSETS:
            return False
        return self._table.fits(shm_offset, len)

    def _add(self, mapping: Mapping) -> None:
        self._table.insert(mapping)
        self._quota.add(1)

    def _remove(self, mapping: Mapping) -> None:
        self._table.remove(mapping)
        self._quota.add(-1)

    def _exchange(self, request: int, rows: list[tuple[int, int, int, int, int]], files: list[int]) -> list[int]:
        """Send requests, some at a time, and read their answers; fewer statuses if the channel is lost."""
        line = self._line
        statuses: list[int] = []
        for start in range(0, len(rows), AT_ONCE):
            batch = range(start, min(start + AT_ONCE, len(rows)))
            for at in batch:
                if line.ask(request, rows[at], files[at]):
                    return statuses
            for _ in batch:
                if (status := line.answer(request)) == REST:
                    return statuses
                statuses.append(status)
        return statuses


def _is_sendable(fd: int) -> bool:
    """It is an fd, and of no path only (O_PATH), which would cost QEMU 11.1 its channel."""
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    except (OSError, ValueError):
        return False


def _are_ints(*values: object) -> bool:
    """All are ints, and nothing else that could be made one."""
    return all(isinstance(value, int) for value in values)


def new_server(sock: socket.socket, windows: dict[int, AnyCore]) -> AnyServer:
    """The plain way of a front-end."""
    return (_native.channel.Server if _native.accelerated else Server)(sock, windows)  # type: ignore[arg-type]  # one kind


def new_line(lock: threading.Lock) -> AnyLine:
    """What the callers of a device share."""
    return _native.channel.Line(lock) if _native.accelerated else Line(lock)


def new_caller(line: AnyLine, shmid: int, size: int, table: AnyTable, quota: AnyQuota) -> AnyCaller:
    """The plain way of a device's region."""
    kind = _native.channel.Caller if _native.accelerated else Caller
    return kind(line, shmid, size, table, quota)  # type: ignore[arg-type]  # one kind a process
