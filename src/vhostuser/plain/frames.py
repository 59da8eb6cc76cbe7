"""The bytes of plain messages, and the results that send their callers the long way."""

from __future__ import annotations

import array
import socket
import struct
from typing import Final

from ..protocol.numbers import MAX_FDS, NEED_REPLY, REPLY, VERSION, BackendRequest
from ..protocol.payloads import HEADER, U64, Mmap
from ..transport.socket import FD_KINDS

EXPIRED, TAKE, NOT_TAKEN, WAITING = -1, -2, -3, -4
"""What `Server.run` returns instead of an fd."""
MOST_ASKED: Final = 512
"""Requests answered before what was waited for, once that is there: more than can have been sent before it."""
MOST_WATCHED: Final = 64
"""Fds that `Server.run` takes besides its own: more of them are for the long way."""
UNSENT, REST, STALE = -11, -12, -13
"""What `Caller.map` and `Caller.unmap` return instead of a status."""

MAP, UNMAP = int(BackendRequest.SHMEM_MAP), int(BackendRequest.SHMEM_UNMAP)
BODY: Final = Mmap.STRUCT
ASKING: Final = VERSION | NEED_REPLY
MAP_HEADER: Final = HEADER.pack(MAP, ASKING, BODY.size)
UNMAP_HEADER: Final = HEADER.pack(UNMAP, ASKING, BODY.size)
ANSWER: Final = {number: HEADER.pack(number, VERSION | REPLY, U64.STRUCT.size) for number in (MAP, UNMAP)}
YES: Final = {number: header + U64(0).pack() for number, header in ANSWER.items()}
ACK_SIZE: Final = len(YES[MAP])
CONTROL: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
RECEIVE: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
DONTWAIT: Final = int(socket.MSG_DONTWAIT)
NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)
SEND: Final = DONTWAIT | NOSIGNAL
CTRUNC: Final = int(socket.MSG_CTRUNC)
RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
ONE_FD: Final = struct.Struct("@i")


def fds_in(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The fd numbers among ancillary data."""
    fds = array.array("i")
    for level, kind, payload in control:
        if level == RIGHTS[0] and kind in FD_KINDS:
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return list(fds)
