"""Drive the test device for shared memory (`vhu-shm`) without a VM: let it map parts of its files."""

from __future__ import annotations

from typing import Final

from ..errors import LocalProtocolError, RemoteProtocolError, RequestFailed
from ..frontend import Frontend
from ..protocol.numbers import END_OF_ADDRESSES
from ..protocol.regions import PROCESS_QUOTA, Mapping
from ..queue import TIMEOUT
from ..virtio.mapper import ENTRY, WRITABLE, MapperOp, MapperRequest, MapperStatus

AT_ONCE: Final = 64
"""Mappings that are asked for at a time."""
WORDS: Final = 1024
"""Bytes for what the device says."""


class ShmDriver:
    """A queue of `vhu-shm`. Needs `share_memory` before; a device may take `timeout` seconds for an answer.

    What it maps is to be seen in `frontend.shm`. Methods raise RequestFailed, with the device's status and its words, if it
    says no, and whatever `Queue.exchange` raises.
    """

    def __init__(self, frontend: Frontend, queue: int = 0, size: int = 16, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.queue = frontend.start_queue(queue, size=size)

    def map(
        self, file: int, *, shm_offset: int, len: int, fd_offset: int = 0, shmid: int = 0, writable: bool = False
    ) -> None:
        """Have `len` bytes of the device's file number `file`, from `fd_offset` on, mapped at `shm_offset` of a region."""
        flags = WRITABLE if writable else 0
        self.ask(MapperRequest(MapperOp.MAP, shmid, file, flags, shm_offset, len, fd_offset))

    def unmap(self, *, shm_offset: int, len: int, shmid: int = 0) -> None:
        """Have one whole mapping taken away."""
        self.ask(MapperRequest(MapperOp.UNMAP, shmid, shm_offset=shm_offset, len=len))

    def mappings(self, shmid: int = 0) -> tuple[Mapping, ...]:
        """What the device has mapped in a region, in order of its offset."""
        found: list[Mapping] = []
        while True:
            start = found[-1].end if found else 0
            data = self.ask(MapperRequest(MapperOp.MAPPINGS, shmid, shm_offset=start), AT_ONCE * ENTRY.size)
            more = _mappings(data, start)
            found += more
            if len(found) > PROCESS_QUOTA:
                text = f"MAPPINGS was answered with more than {PROCESS_QUOTA} mappings, which is all that a process may have"
                raise RemoteProtocolError(text, field="mappings", value=len(found), limit=PROCESS_QUOTA)
            if len(more) < AT_ONCE or more[-1].end == END_OF_ADDRESSES:
                return tuple(found)

    def ask(self, request: MapperRequest, room: int = WORDS) -> bytes:
        """Send one request as it is: what comes after the status. RequestFailed for any status but OK."""
        answer = self.queue.exchange(_packed(request), 1 + max(room, WORDS), timeout=self.timeout)
        if not answer:
            raise RemoteProtocolError("the device gave no status: it takes no requests", field="len", value=0)
        if answer[0] == MapperStatus.OK:
            return answer[1:]
        name = next((op.name for op in MapperOp if op == request.op), f"op {request.op}")
        status = next((each.name for each in MapperStatus if each == answer[0]), f"status {answer[0]}")
        words = answer[1:].decode(errors="backslashreplace")
        raise RequestFailed(name, answer[0], f"{name} was answered with {status}: {words or 'no more'}")


def _packed(request: MapperRequest) -> bytes:
    """Its bytes; LocalProtocolError if a number has no room there."""
    for field, value in request._asdict().items():
        limit = 1 << (64 if field in ("shm_offset", "len", "fd_offset") else 32)
        if not 0 <= value < limit:
            text = f"request {field} {value} is not between 0 and {limit:#x}"
            raise LocalProtocolError(text, request="request", field=field, value=value, limit=limit)
    return request.pack()


def _mappings(data: bytes, start: int) -> list[Mapping]:
    """The mappings of an answer. RemoteProtocolError if it is none, if it goes back, or if one of them can't be."""
    if len(data) % ENTRY.size:
        raise RemoteProtocolError(f"MAPPINGS was answered with {len(data)} bytes, no whole mappings", field="len")
    rows = ENTRY.iter_unpack(data)
    found = [Mapping(offset, size, fd_offset, bool(flags & WRITABLE)) for offset, size, fd_offset, flags in rows]
    for each in found:
        if each.shm_offset < start:
            text = f"MAPPINGS from {start:#x} on was answered with one at {each.shm_offset:#x}"
            raise RemoteProtocolError(text, field="shm_offset", value=each.shm_offset, limit=start)
        _check(each)
        start = each.end
    return found


def _check(mapping: Mapping) -> None:
    """RemoteProtocolError if there is nothing of it, or no such place."""
    if not mapping.len:
        text = f"MAPPINGS was answered with one whose len 0x0 is not between 1 and {END_OF_ADDRESSES:#x}"
        raise RemoteProtocolError(text, field="len", value=0, limit=END_OF_ADDRESSES)
    if mapping.end > END_OF_ADDRESSES:
        text = f"MAPPINGS was answered with one whose shm_offset {mapping.shm_offset:#x} + len {mapping.len:#x}"
        text = f"{text} passes {END_OF_ADDRESSES:#x}"
        raise RemoteProtocolError(text, field="len", value=mapping.len, limit=END_OF_ADDRESSES)
