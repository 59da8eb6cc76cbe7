"""A device's map and unmap over the back-end channel: the twins of `_native.line` and `_native.caller`."""

from __future__ import annotations

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
from typing import Final, TypeAlias

from ..protocol.numbers import END_OF_FILE_OFFSETS, HEADER_SIZE, PAGE
from ..protocol.payloads import HEADER
from ..protocol.regions import Mapping, MappingTable, Quota
from ..transport.socket import LONGEST_NAP, SCARCE, SCARCE_TIMEOUT, SHORTEST_NAP, milliseconds, wait
from .frames import (
    ACK_SIZE,
    ANSWER,
    ASKING,
    BODY,
    CONTROL,
    CTRUNC,
    DONTWAIT,
    MAP,
    NOSIGNAL,
    ONE_FD,
    RECEIVE,
    REST,
    RIGHTS,
    STALE,
    UNMAP,
    UNSENT,
    YES,
    fds_in,
)

MapRow: TypeAlias = tuple[object, int, int, int, bool]
"""shm_offset, len, fd_offset and writable of a request, behind its file."""
AT_ONCE: Final = 64
"""Requests under way together: their acknowledgements, unread, must fit into the socket."""
LOOK_EVERY: Final = 64
"""Requests after which a channel is looked at once more for what nobody asked for; the long way always looks."""
LOST: Final = frozenset({errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""What sendmsg says of a channel that is over, or that nobody reads. Whatever else it says is of the one message."""
_REQUEST: Final = struct.Struct("=" + HEADER.format.lstrip("=") + BODY.format.lstrip("="))


class Line:
    """What the regions of a device share: the back-end channel, whether it may be used, and the lock for it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self.running, self.seconds = lock, False, 10.0
        self.socket: socket.socket | None = None
        self._poll = select.poll()
        self._rest: tuple[bytes, list[int], int] = (b"", [], 0)
        self._turn = 0

    def use(self, sock: socket.socket | None, seconds: float) -> None:
        """Send on `sock` from now on, or on nothing; wait at most `seconds` for an acknowledgement."""
        self.socket, self.seconds, self._poll, self._turn = sock, seconds, select.poll(), 0
        if sock:
            self._poll.register(sock, select.POLLIN)

    def is_quiet(self) -> bool:
        """Nothing has come that a request would take for its answer. To look costs a system call, so it is done rarely."""
        if self._turn % LOOK_EVERY == 0 and self._poll.poll(0):
            return False
        self._turn += 1
        return True

    def take(self) -> tuple[bytes, list[int], int]:
        """What came instead of whole acknowledgements: bytes, fd numbers, and the errno that ended it, or 0.

        It is negative if the kernel took nothing: no acknowledgement is to come, and the channel is as it was.
        """
        rest, self._rest = self._rest, (b"", [], 0)
        return rest

    def ask(self, request: int, body: tuple[int, int, int, int, int], fd: int) -> int:
        """Send one request in one piece: 0, UNSENT if the kernel does not take it, REST if the channel is lost."""
        control = [(*RIGHTS, ONE_FD.pack(fd))] if fd >= 0 else ()
        data = _REQUEST.pack(request, ASKING, BODY.size, *body)
        try:
            if self.socket and self._send(self.socket, data, control) == len(data):
                return 0
            self._rest = (b"", [], errno.EAGAIN)
        except OSError as error:
            if error.errno not in LOST:
                self._rest = (b"", [], -(error.errno or errno.ENOMEM))
                return UNSENT
            self._rest = (b"", [], error.errno or errno.EPIPE)
        return REST

    def _send(self, sock: socket.socket, data: bytes, control: Sequence[tuple[int, int, bytes]]) -> int:
        """Send once there is room; BlockingIOError at the deadline."""
        try:
            return sock.sendmsg((data,), control, NOSIGNAL | DONTWAIT)
        except BlockingIOError:
            if not wait((), time.monotonic() + self.seconds, (sock,)):
                raise
        return sock.sendmsg((data,), control, NOSIGNAL | DONTWAIT)

    def ask_again(self, request: int, body: tuple[int, int, int, int, int], fd: int, *, owed: bool) -> int:
        """`ask`, again and again while memory is short; REST if it still is at the deadline, where it is `owed`."""
        deadline, nap = time.monotonic() + (self.seconds if owed else min(self.seconds, SCARCE_TIMEOUT)), SHORTEST_NAP
        while (result := self.ask(request, body, fd)) == UNSENT and -self._rest[2] in SCARCE and time.monotonic() < deadline:
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP)
        if result == UNSENT and owed:
            self._rest = (b"", [], -self._rest[2])
        return REST if result and owed else result

    def answer(self, request: int) -> int:
        """Wait for the acknowledgement of one request: its status, or REST."""
        data, deadline = b"", time.monotonic() + self.seconds
        try:
            while len(data) < ACK_SIZE and ANSWER[request].startswith(data[:HEADER_SIZE]):
                if not self._poll.poll(milliseconds(deadline)):
                    raise BlockingIOError(errno.EAGAIN, "no answer")
                if self.socket is None:
                    raise OSError(0, "the end")
                more, control, flags, _ = self.socket.recvmsg(ACK_SIZE - len(data), CONTROL, RECEIVE)
                if not more:
                    raise OSError(0, "the end")
                data += more
                fds = fds_in(control) if control else []
                if fds or flags & CTRUNC:
                    self._rest = (data, fds, 0) if fds else (b"", [], errno.EMFILE)
                    return REST
        except OSError as error:
            self._rest = (data, [], error.errno or 0)
            return REST
        except BaseException:  # an interrupt: what is still to come would be taken for the next answer
            if self.socket:
                self.socket.shutdown(socket.SHUT_RDWR)
            raise
        if data == YES[request]:
            return 0
        if data[:HEADER_SIZE] == ANSWER[request]:
            return int.from_bytes(data[HEADER_SIZE:], sys.byteorder)
        self._rest = (data, [], 0)
        return REST


class Caller:
    """The map and unmap of one region of a device."""

    def __init__(self, line: Line, shmid: int, size: int, table: MappingTable, quota: Quota) -> None:
        self.epoch = 0
        self.maps = self.unmaps = 0
        self._books = threading.Lock()
        """Held while table, quota and epoch change together: a reset comes from another thread."""
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
            if not line.is_quiet():
                return UNSENT
            epoch, flags = self.epoch, 1 if writable else 0
            if status := line.ask(MAP, (self._shmid, fd_offset, shm_offset, len, flags), fd) or line.answer(MAP):
                return status
            with self._books:
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
            if mapping is None or not line.is_quiet():
                return UNSENT
            epoch = self.epoch
            if status := line.ask(UNMAP, (self._shmid, 0, shm_offset, len, 0), -1) or line.answer(UNMAP):
                return status
            with self._books:
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
        with self._books:
            epoch = self.epoch
            for _, shm_offset, length, fd_offset, writable in requests:
                if not self._is_plain(shm_offset, length, fd_offset) or self._quota.exhausted():
                    break
                taken.append(Mapping(shm_offset, length, fd_offset, bool(writable)))
                self._add(taken[-1])
            if len(taken) < len(requests):
                for mapping in taken:
                    self._remove(mapping)
                return None
        rows = [(self._shmid, m.fd_offset, m.shm_offset, m.len, int(m.writable)) for m in taken]
        statuses = self._exchange(MAP, rows, files)
        with self._books:
            for mapping, status in zip_longest(taken, statuses) if epoch == self.epoch else ():
                if status == 0:
                    self.maps += 1
                else:
                    self._remove(mapping)
        return statuses

    def unmap_many(self, ranges: list[tuple[int, int]]) -> list[int] | None:
        """SHMEM_UNMAP for each (shm_offset, len) of `ranges`: as `map_many`."""
        taken: list[Mapping] = []
        with self._books:
            epoch = self.epoch
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
        rows = [(self._shmid, 0, m.shm_offset, m.len, 0) for m in taken]
        statuses = self._exchange(UNMAP, rows, [-1] * len(rows))
        with self._books:
            for mapping, status in zip_longest(taken, statuses) if epoch == self.epoch else ():
                if status == 0:
                    self.unmaps += 1
                else:
                    self._add(mapping)
        return statuses

    def forget(self) -> None:
        """The front-end has dropped every mapping: requests that are under way are STALE."""
        with self._books:
            self.epoch += 1
            self._quota.add(-self._table.__len__())
            self._table.clear()

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
                if line.ask_again(request, rows[at], files[at], owed=at > 0):
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
