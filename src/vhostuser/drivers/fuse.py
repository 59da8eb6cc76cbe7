"""FUSE requests to a virtio-fs device without a VM ("File System Device"): one at a time, as they are.

`drivers.fs` makes files and directories of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from typing import Final

from ..errors import RemoteProtocolError
from ..frontend import Frontend
from ..fuse.numbers import ROOT_ID, VERSION, InitFlag, Opcode
from ..fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES
from ..fuse.structs import BatchForgetIn, ForgetOne, InHeader, InitIn, InitOut, OutHeader
from ..protocol.layout import Payload
from ..queue import TIMEOUT

HIPRIO, REQUESTS = 0, 1
"""The queue of FORGET and INTERRUPT, and the first of the others."""
WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.MAX_PAGES
    | InitFlag.MAP_ALIGNMENT
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
    | InitFlag.HAS_INODE_DAX
)
"""What this driver understands."""
READAHEAD: Final = 1 << 17
UNKNOWN_MAX_WRITE: Final = 1 << 12
LONGEST: Final = 1 << 20
"""Bytes of data in one request at most, whatever the device takes."""
_CONFIG = Struct("<36sI")


class FuseSession:
    """A session with a virtio-fs device, from INIT to DESTROY. Needs `share_memory` before, 4 MiB or more.

    Calls raise OSError if the device answers with an errno, RemoteProtocolError if its answer is none, and what
    `Queue.exchange` raises; a device may take `timeout` seconds. Requests are those of user `uid` and group `gid`.
    """

    def __init__(
        self,
        frontend: Frontend,
        *,
        flags: int = WANTED,
        uid: int | None = None,
        gid: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.frontend, self.timeout = frontend, timeout
        self.uid = os.geteuid() if uid is None else uid
        self.gid = os.getegid() if gid is None else gid
        self._unique = 0
        self._hiprio = frontend.start_queue(HIPRIO, size=64)
        self._requests = frontend.start_queue(REQUESTS, size=64)
        self.init = self._begin(flags)
        """What INIT agreed upon."""

    @property
    def agreed(self) -> int:
        """The flags that both sides want, as a mask of InitFlag."""
        return self.init.flags | self.init.flags2 << 32

    @property
    def max_write(self) -> int:
        """Bytes of data that one request takes."""
        return min(self.init.max_write or UNKNOWN_MAX_WRITE, LONGEST)

    @property
    def tag(self) -> str:
        """The name of the share, if the device has a configuration space ("Device configuration layout")."""
        tag, _ = _CONFIG.unpack(self.frontend.config(0, _CONFIG.size))
        return str(tag.rstrip(b"\0").decode(errors="backslashreplace"))

    def call(
        self,
        opcode: Opcode,
        nodeid: int = ROOT_ID,
        arguments: Payload | None = None,
        *names: bytes,
        data: bytes = b"",
        room: int | None = None,
    ) -> bytes:
        """Send a request and wait for its answer: the bytes after its header.

        They are at most `room`, or else as many as the struct in its rule has.
        """
        rule = RULES[opcode]
        if room is None:
            room = rule.result.STRUCT.size if rule.result else 0
        request = self._request(opcode, nodeid, arguments, names, data)
        buffers = [size for size in (OUT_HEADER_SIZE, room) if size]
        queue = self._requests
        ticket = queue.submit([part for part in (request, data) if part], buffers)
        try:
            done = queue.finish(ticket, timeout=self.timeout)
        finally:
            queue.give_up(ticket)
        return self._answer(opcode, done.data)

    def forget(self, nodes: Sequence[int]) -> None:
        """Tell the device that these nodes, each of them looked up once, are needed no more."""
        if nodes:
            data = b"".join(ForgetOne(nodeid, 1).pack() for nodeid in nodes)
            arguments = BatchForgetIn(len(nodes))
            self._hiprio.exchange(self._request(Opcode.BATCH_FORGET, 0, arguments, (), data) + data, timeout=self.timeout)

    def destroy(self) -> None:
        """End the session; another may begin with a new object."""
        self.call(Opcode.DESTROY)

    def _begin(self, flags: int) -> InitOut:
        low, high = flags & 0xFFFFFFFF, flags >> 32
        data = self.call(Opcode.INIT, 0, InitIn(*VERSION, READAHEAD, low, high))
        if len(data) != InitOut.STRUCT.size:
            raise RemoteProtocolError(f"INIT was answered with {len(data)} bytes, not {InitOut.STRUCT.size}", request="INIT")
        init = InitOut.unpack(data)
        if init.major != VERSION[0]:
            text = f"INIT major {init.major} is another FUSE than {VERSION[0]}"
            raise RemoteProtocolError(text, request="INIT", field="major", value=init.major, limit=VERSION[0])
        return init

    def _request(self, opcode: Opcode, nodeid: int, arguments: Payload | None, names: Sequence[bytes], data: bytes) -> bytes:
        """The bytes of a request, but for its data."""
        self._unique += 2
        body = (arguments.pack() if arguments else b"") + b"".join(name + b"\0" for name in names)
        size = IN_HEADER_SIZE + len(body) + len(data)
        return InHeader(size, opcode, self._unique, nodeid, self.uid, self.gid, os.getpid()).pack() + body

    def _answer(self, opcode: Opcode, reply: bytes) -> bytes:
        """What is behind the header of an answer. OSError if it is an error."""
        name = opcode.name
        if opcode == Opcode.DESTROY and not reply:  # virtiofsd says nothing
            return b""
        if len(reply) < OUT_HEADER_SIZE:
            raise RemoteProtocolError(f"{name} was answered with {len(reply)} bytes, not {OUT_HEADER_SIZE}", request=name)
        header = OutHeader.unpack(reply[:OUT_HEADER_SIZE])
        for field, value, limit in (("len", header.len, len(reply)), ("unique", header.unique, self._unique)):
            if value != limit:
                text = f"{name} answer {field} {value} is not {limit}"
                raise RemoteProtocolError(text, request=name, field=field, value=value, limit=limit)
        if header.error:
            raise OSError(-header.error, f"{name}: {os.strerror(-header.error)}")
        return reply[OUT_HEADER_SIZE:]
