"""A front-end's receiving loop on the back-end channel: the twin of `_native.server`."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from ..errors import Disconnected
from ..memory.core import WindowCore
from ..protocol.numbers import HEADER_SIZE
from ..transport.fds import close_fd
from ..transport.socket import LONGEST_NAP, NO_WAIT, SHORTEST_NAP, NotTaken, WouldBlock, send_some, wait
from .frames import (
    ACK_SIZE,
    BODY,
    CONTROL,
    CTRUNC,
    EXPIRED,
    MAP,
    MAP_HEADER,
    MOST_ASKED,
    NOT_TAKEN,
    ONE_FD,
    RECEIVE,
    RIGHTS,
    SEND,
    TAKE,
    UNMAP,
    UNMAP_HEADER,
    YES,
    fds_in,
)


class Server:
    """A front-end's receiving loop on the back-end channel."""

    def __init__(self, sock: socket.socket, windows: dict[int, WindowCore], seconds: float) -> None:
        self.messages = self.sent_acks = self.maps = self.unmaps = 0
        self._fd, self._windows = sock.fileno(), windows
        self._receive, self._send = sock.recvmsg, sock.send
        self._socket, self._seconds = sock, seconds
        self._unsent, self._until = b"", 0.0
        self._data, self._truncated = b"", False
        self._fds: list[int] = []
        self._poll = select.poll()
        self._watched: tuple[int, ...] = ()

    def run(self, others: Sequence[int], seconds: float) -> int:
        """Answer requests until one of the fds `others` is readable, and return it; those that came before it first.

        EXPIRED after `seconds` (negative: never), TAKE if something is there for `take`, NOT_TAKEN if the back-end does not
        take its acknowledgements. An interrupt leaves what is unsent of one to the next run.
        """
        if (result := self._push()) or self.unfinished:
            return result or TAKE
        poll, own, patience = self._watch(others).poll, self._fd, MOST_ASKED
        deadline, left = time.monotonic() + seconds, seconds
        while True:
            ready = poll(None if seconds < 0 else left * 1000)
            if not ready:
                return EXPIRED
            other = next((fd for fd, _ in ready if fd != own), None)
            if other is not None and (patience <= 0 or len(ready) == 1):
                return other
            patience -= other is not None
            if result := self._one():
                return result
            if seconds >= 0 and (left := deadline - time.monotonic()) <= 0:
                return next((fd for fd, _ in poll(0) if fd != own), EXPIRED)

    @property
    def unfinished(self) -> bool:
        """An acknowledgement is not sent yet, or something is there for `take`: another run comes before anything else."""
        return bool(self._unsent or self._data or self._fds)

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
            data, control, flags, _ = self._receive(HEADER_SIZE, CONTROL, RECEIVE)
        except BlockingIOError:
            return 0
        except OSError:
            return TAKE
        if control:
            payload = control[0][2]
            if (
                data == MAP_HEADER
                and len(payload) == ONE_FD.size
                and control[0][:2] == RIGHTS
                and len(control) == 1
                and not flags & CTRUNC
            ):
                return self._map(ONE_FD.unpack(payload)[0])
        elif data == UNMAP_HEADER and not flags & CTRUNC:
            return self._unmap()
        self._data, self._fds, self._truncated = data, fds_in(control), bool(flags & CTRUNC)
        return TAKE

    def _map(self, fd: int) -> int:
        body = self._body()
        if len(body) == BODY.size:
            shmid, fd_offset, shm_offset, length, flags = BODY.unpack(body)
            window = self._windows.get(shmid)
            if window and window.map(fd, shm_offset, length, fd_offset, flags):
                close_fd(fd)
                self.maps += 1
                return self._acknowledge(MAP)
        self._data, self._fds = MAP_HEADER + body, [fd]
        return TAKE

    def _unmap(self) -> int:
        body = self._body()
        if len(body) == BODY.size:
            shmid, _, shm_offset, length, _ = BODY.unpack(body)
            window = self._windows.get(shmid)
            if window and window.unmap(shm_offset, length):
                self.unmaps += 1
                return self._acknowledge(UNMAP)
        self._data = UNMAP_HEADER + body
        return TAKE

    def _body(self) -> bytes:
        """The payload. Fds belong to the first byte of a message: the kernel says if there were some here."""
        try:
            data, _, flags, _ = self._receive(BODY.size, 0, RECEIVE)
        except OSError:
            return b""
        self._truncated = bool(flags & CTRUNC)
        return b"" if self._truncated else data

    def _acknowledge(self, request: int) -> int:
        self.messages += 1
        self.sent_acks += 1
        try:
            sent = self._send(YES[request], SEND)
        except OSError:
            sent = 0  # why, the next try says
        if sent == ACK_SIZE:
            return 0
        self._unsent, self._until = YES[request][sent:], time.monotonic() + self._seconds
        return self._push()

    def _push(self) -> int:
        """Send what is unsent: 0, or what `run` returns."""
        nap = SHORTEST_NAP
        while self._unsent:
            try:
                self._unsent = self._unsent[send_some(self._socket, self._unsent, (), NO_WAIT) :]
            except WouldBlock:
                if not wait((), self._until, (self._socket,)):
                    return NOT_TAKEN
            except NotTaken as why:
                if not why.scarce or time.monotonic() >= self._until:
                    return NOT_TAKEN
                time.sleep(nap)
                nap = min(2 * nap, LONGEST_NAP)
            except Disconnected:
                self._unsent = b""
                return TAKE
        return 0
