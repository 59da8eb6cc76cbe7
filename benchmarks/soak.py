"""Does anything leak? A million pairs of map and unmap of random sizes, and ten thousand connections, some torn off.

Both processes are looked at before and after: fds, shared mappings and threads as before, resident memory within a bound.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from vhostuser import Backend, DescriptorChain, Device, Frontend
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64
from vhostuser.testing import usage, wait_until
from vhostuser.testing.files import message

PAGE = 4096
MIB = 1 << 20
LARGEST = 64 * MIB
WINDOW = 1 << 30
BATCH = 5_000
WARM_UP = 20_000
PAIRS, CONNECTIONS, ABORTS = 1_000_000, 10_000, 1_000
PAIRS_BOUND, CONNECTIONS_BOUND = 1 * MIB, 2 * MIB


class Leak(Exception):
    """A process holds more than it did."""


class Held(NamedTuple):
    """What a process holds: fds, shared mappings, threads, and bytes of resident memory."""

    fds: int
    mappings: int
    threads: int
    resident: int

    @classmethod
    def by(cls, pid: int) -> Held:
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
        return cls(*usage(pid), pages * os.sysconf("SC_PAGE_SIZE"))


class Soaked(Device):
    """Each request makes as many pairs of map and unmap as it says, of random sizes at random places."""

    queue_sizes = (16,)
    shared_memory = MappingProxyType({0: WINDOW})

    def __init__(self) -> None:
        self._dice = random.Random(1)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        self._file.truncate(LARGEST)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        region, draw = self.shm[0], self._dice.randrange
        for _ in range(int.from_bytes(chain.read(), "little")):
            size = draw(1, (LARGEST >> draw(15)) // PAGE + 1) * PAGE
            at = draw((WINDOW - size) // PAGE) * PAGE
            region.map(self._file, shm_offset=at, len=size, writable=bool(size & PAGE))
            region.unmap(shm_offset=at, len=size)
        chain.write(b"\1")


class Report:
    """What the back-end's process and this one held at first; raises Leak if they come to hold more."""

    def __init__(self, back_end: int, bound: int) -> None:
        self._pids, self._bound = {"front-end": os.getpid(), "back-end": back_end}, bound
        self._before = {who: Held.by(pid) for who, pid in self._pids.items()}

    def check(self) -> Iterator[str]:
        """A line for each process. Waits a little for what ends by itself, such as a thread."""
        for who, pid in self._pids.items():
            before = self._before[who]

            def settled(pid: int = pid, before: Held = before) -> bool:
                return all(now <= then for now, then in zip(Held.by(pid)[:3], before[:3], strict=True))

            try:
                wait_until(settled, "as before", within=3)
            except AssertionError:
                raise Leak(f"{who}: {before} became {Held.by(pid)}") from None
            grown = Held.by(pid).resident - before.resident
            if grown > self._bound:
                raise Leak(f"{who}: resident memory grew by {grown / MIB:.2f} MiB, more than {self._bound / MIB:g}")
            yield f"  {who}: {before.fds} fds, {before.mappings} shared mappings as before, RSS {grown / MIB:+.2f} MiB"


@contextmanager
def back_end(serve: Callable[[Backend], None]) -> Iterator[int]:
    """The pid of a process that serves Soaked; it must end well."""
    child = os.fork()
    if not child:
        backend = Backend(Soaked())
        signal.signal(signal.SIGTERM, lambda *_: backend.stop())
        serve(backend)
        os._exit(0)
    try:
        yield child
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    os.kill(child, signal.SIGTERM)
    if status := os.waitpid(child, 0)[1]:
        raise Leak(f"the back-end ended with {os.waitstatus_to_exitcode(status)}")


def soak_pairs(count: int) -> None:
    """`count` pairs of map and unmap."""
    ours, theirs = socket.socketpair()

    def serve(backend: Backend) -> None:
        ours.close()
        backend.serve_fd(theirs.detach())

    with back_end(serve) as pid:
        theirs.close()
        with Frontend(ours) as frontend:
            frontend.share_memory(MIB)
            queue = frontend.start_queue(0, size=16)

            def pairs(number: int) -> None:
                if queue.exchange(number.to_bytes(4, "little"), 1, timeout=300) != b"\1":
                    raise Leak("a mapping was refused")

            pairs(min(WARM_UP, count))
            report, started = Report(pid, PAIRS_BOUND), time.monotonic()
            for done in range(0, count, BATCH):
                pairs(min(BATCH, count - done))
                progress(f"{done:,} of {count:,} pairs")
            seconds = time.monotonic() - started
            if frontend.shm[0].mappings:
                raise Leak("mappings are left")
            print(f"{count:,} pairs of map and unmap, 4 KiB to 64 MiB, {count / seconds:,.0f} a second")
            print(*report.check(), sep="\n", flush=True)


def soak_connections(count: int, aborts: int) -> None:
    """`count` whole connections, one after the other, and `aborts` that end at a random byte."""
    dice = random.Random(2)
    with tempfile.TemporaryDirectory(prefix="vhu-soak-") as folder:
        path = Path(folder) / "s"
        with back_end(lambda backend: backend.serve(path)) as pid:
            for _ in range(min(200, count)):
                connect(path)
                abort(path, dice)
            report, started = Report(pid, CONNECTIONS_BOUND), time.monotonic()
            for done in range(count):
                connect(path)
                if done % 100 == 0:
                    progress(f"{done:,} of {count:,} connections")
            for _ in range(aborts):
                abort(path, dice)
            connect(path)
            seconds = time.monotonic() - started
            print(f"{count:,} connections and {aborts:,} torn off, {seconds:.0f} s", *report.check(), sep="\n")


def connect(path: Path) -> None:
    """Come, negotiate, map once, and go."""
    with Frontend.connect(path, wait=10) as frontend:
        frontend.share_memory(MIB)
        if frontend.start_queue(0, size=16).exchange((1).to_bytes(4, "little"), 1) != b"\1":
            raise Leak("a mapping was refused")


SCRIPT = b"".join(
    message(request, body, flags=flags)
    for request, body, flags in (
        (FrontendRequest.GET_FEATURES, None, 1),
        (FrontendRequest.GET_PROTOCOL_FEATURES, None, 1),
        (FrontendRequest.SET_OWNER, None, 9),
        (FrontendRequest.SET_FEATURES, U64(1 << 32), 9),
    )
)


def abort(path: Path, dice: random.Random) -> None:
    """Come, say a part of what is to be said, and be gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        sock.sendall(SCRIPT[: dice.randrange(len(SCRIPT))])


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text} ", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help="[%(default)s]")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, metavar="N", help="[%(default)s]")
    parser.add_argument("--aborts", type=int, default=ABORTS, metavar="N", help="[%(default)s]")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # each connection that is torn off has its line
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # a wake-up across two CPUs takes longer than a mapping
    try:
        soak_pairs(args.pairs)
        soak_connections(args.connections, args.aborts)
    except Leak as leak:
        print(f"soak: {leak}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
