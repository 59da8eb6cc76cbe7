"""Our side of the SHMEM benchmark through the public API, as a peer of the C and Rust pairs or of ourselves.

`frontend` and `backend` speak over the back-end channel alone, as the C pair does; `whole-frontend` and `whole-backend` are
a whole vhost-user connection, in which a Python device calls `shm.map()` from `process`. The back-end prints nanoseconds per
pair (map, ack, unmap, ack), or per mapping pair of `map_many` and `unmap_many` with --many, after 100 pairs for nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from types import MappingProxyType

from vhostuser import Backend, DescriptorChain, Device, Frontend, MapRequest, SharedMemory
from vhostuser.memory.table import new_quota
from vhostuser.port import Port
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.numbers import mask
from vhostuser.protocol.regions import DEVICE_QUOTA
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Ring, Role, State
from vhostuser.transport.channel import Channel

WARM_UP = 100
WINDOW = 256 << 20
HERE = 96 << 20
"""Where the measured mapping lies: in the middle of the live ones."""
LIVE_BELOW, LIVE_ABOVE = 16 << 20, 160 << 20
LIVE_LEN = 4096


def run(region: SharedMemory, args: argparse.Namespace) -> float:
    """Nanoseconds a pair, with `args.live` further mappings in place."""
    fd = os.memfd_create("benchmark", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, args.len)
    for at in range(args.live):
        start = LIVE_BELOW if at % 2 else LIVE_ABOVE
        region.map(fd, shm_offset=start + at * LIVE_LEN, len=LIVE_LEN)
    work = _many(region, fd, args) if args.many else _single(region, fd, args)
    work(WARM_UP)
    start_time = time.perf_counter_ns()
    work(args.count)
    elapsed = time.perf_counter_ns() - start_time
    os.close(fd)
    return elapsed / float(args.count)


def _single(region: SharedMemory, fd: int, args: argparse.Namespace) -> Callable[[int], None]:
    def work(count: int) -> None:
        length, map_, unmap = args.len, region.map, region.unmap
        for _ in range(count):
            map_(fd, shm_offset=HERE, len=length)
            unmap(shm_offset=HERE, len=length)

    return work


def _many(region: SharedMemory, fd: int, args: argparse.Namespace) -> Callable[[int], None]:
    many, length = args.many, args.len
    requests = [MapRequest(fd, shm_offset=HERE + at * length, len=length) for at in range(many)]
    ranges = [(request.shm_offset, request.len) for request in requests]

    def work(count: int) -> None:
        for _ in range(max(1, count // many)):
            if any(region.map_many(requests)) or any(region.unmap_many(ranges)):
                raise RuntimeError("a request of the benchmark was refused")

    return work


class Busy(Device):
    """A device whose one request is the benchmark."""

    queue_sizes = (16,)
    shared_memory = MappingProxyType({0: WINDOW})

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def process(self, queue: int, chain: DescriptorChain) -> None:
        print(f"{run(self.shm[0], self.args):.1f}", flush=True)
        chain.write(b"\1")


def whole_backend(args: argparse.Namespace) -> None:
    Backend(Busy(args)).serve_fd(args.fd)


def whole_frontend(args: argparse.Namespace) -> None:
    with Frontend(socket.socket(fileno=args.fd)) as frontend:
        frontend.share_memory(1 << 20)
        if frontend.start_queue(0, size=16).exchange(b"go", 1, timeout=60) != b"\1":
            raise RuntimeError("the device failed")


class Filler(Device):
    """A device whose one request fills its region with mappings of a page each, none beside another."""

    queue_sizes = (16,)

    def __init__(self, maps: int) -> None:
        self.shared_memory = {0: 1 << (2 * maps * LIVE_LEN - 1).bit_length()}
        self.requests = range(0, 2 * maps * LIVE_LEN, 2 * LIVE_LEN)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(LIVE_LEN)
            failed = self.shm[0].map_many([MapRequest(file, shm_offset=at, len=LIVE_LEN) for at in self.requests])
        chain.write(bytes([not any(failed)]))


def time_reset(maps: int) -> float:
    """Seconds that a front-end takes to reset a device that has mapped `maps` pages."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        Backend(Filler(maps)).serve_fd(theirs.detach())
        os._exit(0)
    theirs.close()
    with Frontend(ours) as frontend:
        frontend.share_memory(1 << 20)
        if frontend.start_queue(0, size=16).exchange(b"fill", 1, timeout=60) != b"\1":
            raise RuntimeError("the device failed")
        if len(frontend.shm[0].mappings) != maps:
            raise RuntimeError(f"there are {len(frontend.shm[0].mappings)} mappings instead of {maps}")
        started = time.perf_counter()
        frontend.reset()
        elapsed = time.perf_counter() - started
        if frontend.shm[0].mappings:
            raise RuntimeError("the reset left mappings")
    os.waitpid(child, 0)
    return elapsed


def backend(args: argparse.Namespace) -> None:
    """The device's `map` and `unmap` against a peer that has no main channel."""
    acknowledged = mask((F.REPLY_ACK, F.BACKEND_REQ, F.BACKEND_SEND_FD, F.SHMEM))
    session = Session(Role.BACKEND, State(protocol_acknowledged=acknowledged, rings=(Ring(started=True),)))
    port = Port()
    port.connect(session)
    port.open(Channel(socket.socket(fileno=args.fd)))
    region = SharedMemory(0, WINDOW, port, new_quota("device", DEVICE_QUOTA))
    print(f"{run(region, args):.1f}", flush=True)
    port.close()


def frontend(args: argparse.Namespace) -> None:
    """A front-end whose back-end channel is the socket of the peer; an idle back-end of ours answers the negotiation."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        os.close(args.fd)
        Backend(Busy(args)).serve_fd(theirs.detach())
        os._exit(0)
    theirs.close()
    with Frontend(ours) as front:
        answering = front._answering
        answering.close()
        answering.open(Channel(socket.socket(fileno=args.fd)))
        answering.use(front._windows.cores)
        while answering.is_open:
            front.serve(0.02)
    os.waitpid(child, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["frontend", "backend", "whole-frontend", "whole-backend"])
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--len", type=int, default=2 << 20)
    parser.add_argument("--live", type=int, default=0)
    parser.add_argument("--many", type=int, default=0)
    args = parser.parse_args()
    roles: dict[str, Callable[[argparse.Namespace], None]] = {
        "frontend": frontend,
        "backend": backend,
        "whole-frontend": whole_frontend,
        "whole-backend": whole_backend,
    }
    roles[args.role](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
