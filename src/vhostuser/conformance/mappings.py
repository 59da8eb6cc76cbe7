"""What a back-end asks of shared memory, as a front-end that keeps no regions sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..protocol.framing import Frame
from ..protocol.numbers import NEED_REPLY, BackendRequest, FrontendRequest, ProtocolFeature, mask
from ..protocol.payloads import U64, Mmap
from ..testing.files import message
from ..testing.wire import ACK
from ..transport.fds import OwnedFd
from ..virtio.numbers import Status
from .backend_bench import PROTOCOL, BackendBench
from .outcome import Deviation, NotApplicable
from .wire import RecordedWire

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
PLAIN: Final = PROTOCOL & ~mask((F.INFLIGHT_SHMFD, F.LOG_SHMFD, F.DEVICE_STATE))
QUIET: Final = 0.05
"""Seconds of silence after which a back-end is taken to have asked for all that it wants."""
READY: Final = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the back-end for shared memory."""

    frame: Frame[OwnedFd]
    body: Mmap

    @property
    def is_map(self) -> bool:
        """SHMEM_MAP, not SHMEM_UNMAP."""
        return self.frame.request == B.SHMEM_MAP

    @property
    def end(self) -> int:
        """The first byte of the region behind it."""
        return self.body.shm_offset + self.body.len


def start(bench: BackendBench, *, protocol: int = PLAIN, channel: bool = True) -> None:
    """Start ring 0, so that a device maps what it maps by itself."""
    bench.agree(protocol=protocol)
    if channel and bench.has(F.BACKEND_REQ):
        bench.open_requests()
    bench.share_memory()
    run(bench)


def run(bench: BackendBench) -> None:
    """Set up ring 0 and tell that the driver is ready. Nothing of it waits for the back-end, which may wait for us."""
    if bench.has(F.STATUS):
        bench.request(Q.SET_STATUS, U64(READY))
    bench.start_queue()


def channel_of(bench: BackendBench) -> RecordedWire:
    """Our end of the back-end channel."""
    if not isinstance(bench.requests, RecordedWire):
        raise NotApplicable("there is no back-end channel")
    return bench.requests


def first(bench: BackendBench) -> Asked:
    """The first mapping that the device asks for by itself."""
    for asked in all_of(bench, answer=False):
        if asked.is_map:
            return asked
    raise NotApplicable("it maps nothing by itself")


def all_of(bench: BackendBench, *, answer: bool = True, status: int = 0, patience: float | None = None) -> Iterator[Asked]:
    """What the device asks for until it is quiet; answered with `status` if it wants that, and `answer`.

    The first request may take `patience` seconds, or half the deadline.
    """
    wire, patience = channel_of(bench), bench.deadline / 2 if patience is None else patience
    end = time.monotonic() + patience + bench.deadline
    while readable(wire, patience):
        if time.monotonic() > end:
            raise Deviation("an end of its requests", f"one after the other for {bench.deadline:g} s", hung=True)
        frame = wire.receive()
        for fd in frame.fds:
            bench.keep(fd)
        if frame.request in (B.SHMEM_MAP, B.SHMEM_UNMAP):
            yield Asked(frame, _body(frame))
        if answer and frame.flags & NEED_REPLY:
            acknowledge(wire, frame, status)
        patience = QUIET


def acknowledge(wire: RecordedWire, frame: Frame[OwnedFd], status: int = 0) -> None:
    """Answer a request."""
    wire.send(message(frame.request, U64(status), flags=ACK))


def readable(wire: RecordedWire, seconds: float) -> bool:
    """Something comes in that time."""
    return wire.comes_within(seconds)


def asks_nothing(bench: BackendBench, when: str) -> None:
    """The back-end asks for nothing."""
    wire, end = channel_of(bench), time.monotonic() + QUIET
    if readable(wire, max(0.0, end - time.monotonic())) and (frame := wire.receive_or_end()) is not None:
        for fd in frame.fds:
            bench.keep(fd)
        raise Deviation(f"no request {when}", f"request {frame.request}")


def _body(frame: Frame[OwnedFd]) -> Mmap:
    if len(frame.payload) != Mmap.STRUCT.size:
        raise Deviation(f"a payload of {Mmap.STRUCT.size} bytes", f"{len(frame.payload)} bytes")
    return Mmap.unpack(frame.payload)
