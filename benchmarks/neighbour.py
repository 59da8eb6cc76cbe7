"""How much of its throughput a device keeps while another one, in the same process, has a hostile front-end.

One process serves both, each Backend in a thread. It shares a CPU with the neighbour's driver, the hostile peer has another.
The peer attacks and rests in turns: a ratio is that of a turn to the one before it, in which the same peer rests.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from vhostuser import Backend, DescriptorChain, Device, Frontend
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.queue import Queue
from vhostuser.testing import RawFrontend
from vhostuser.testing.files import message
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.socket import wait

HERE: Final = Path(__file__).resolve()
TURNS, MILLISECONDS, DEPTH, GOAL = 21, 40, 32, 0.80
WAIT: Final = 30.0

Step = Callable[[], object]


class Turn(NamedTuple):
    """The neighbour's requests a second while the peer rests, and right after, while it attacks."""

    resting: float
    attacked: float


class Echo(Device):
    """Gives back what came."""

    queue_sizes = (256,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read())


# What a hostile front-end does that has negotiated and shared memory: set things up, then one step over and over


@contextlib.contextmanager
def be_idle(raw: RawFrontend) -> Iterator[Step]:
    """Have a ring, and leave it alone."""
    raw.set_up_queue()
    yield rest
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))


@contextlib.contextmanager
def break_its_ring(raw: RawFrontend) -> Iterator[Step]:
    """Set up a ring with nonsense in it, and again as soon as it is broken."""
    memory, kick, err = raw.share_memory(), raw.eventfd(), raw.eventfd()
    os.pwrite(memory.fileno(), b"\xff\x7f", 16 * 16 + 2)
    raw.accepted(Q.SET_VRING_ERR, U64(0), fds=[err])

    def step() -> None:
        raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x100, 0))
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
        if not wait((err,), time.monotonic() + WAIT):
            raise RuntimeError("the queue did not break")
        os.eventfd_read(err.fileno())
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))

    yield step


@contextlib.contextmanager
def be_refused(raw: RawFrontend) -> Iterator[Step]:
    """Ask for rings that are not there, as fast as the back-end reads."""
    keep_little_on_the_way(raw)
    flood = message(Q.SET_VRING_NUM, VringState(0xFFFF, 16)) * 64
    yield lambda: raw.send(flood)
    raw.alive()


@contextlib.contextmanager
def be_unknown(raw: RawFrontend) -> Iterator[Step]:
    """Send requests that nobody knows, of another number each."""
    keep_little_on_the_way(raw)
    flood = b"".join(message(0x1000 + number, bytes(64)) for number in range(64))
    yield lambda: raw.send(flood)
    raw.alive()


@contextlib.contextmanager
def kick(raw: RawFrontend) -> Iterator[Step]:
    """Kick an empty ring."""
    raw.set_up_queue()
    if raw.kick is None:
        raise RuntimeError("no ring was set up")
    fd = raw.kick.fileno()
    yield lambda: os.eventfd_write(fd, 1)
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))


@contextlib.contextmanager
def kick_endlessly(raw: RawFrontend) -> Iterator[Step]:
    """Give the back-end a kick that is set for good."""
    raw.set_up_queue()
    with OwnedFd(os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)) as zero:
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[zero])
    yield rest
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))


@contextlib.contextmanager
def change_memory(raw: RawFrontend) -> Iterator[Step]:
    """Share memory anew, over and over."""
    memory, table = raw.share_memory(), MemoryTable([MemoryRegion(0, 1 << 20, 0, 0)])
    yield lambda: raw.accepted(Q.SET_MEM_TABLE, table, fds=[memory])


def keep_little_on_the_way(raw: RawFrontend) -> None:
    """Let the socket hold few messages, so that the attack ends soon after the last one is sent."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 13)


def rest() -> None:
    """Do nothing for a while."""
    time.sleep(0.001)


ATTACKS: Final[dict[str, Callable[[RawFrontend], AbstractContextManager[Step]]]] = {
    "does nothing": be_idle,
    "breaks its ring": break_its_ring,
    "sends what is refused": be_refused,
    "sends what is unknown": be_unknown,
    "kicks": kick,
    "kicks without end": kick_endlessly,
    "changes its memory": change_memory,
}


# Processes


def serve(fds: list[int]) -> None:
    """Serve a device at each of the fds."""
    threads = [threading.Thread(target=Backend(Echo()).serve_fd, args=(fd,)) for fd in fds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attack(name: str, fd: int) -> None:
    """Attack and rest in turns: each byte of standard input ends a turn, a line of output says that the next one runs."""
    with RawFrontend(socket.socket(fileno=fd), deadline=WAIT) as raw:
        raw.negotiate()
        raw.share_memory()
        while os.read(0, 1):
            with ATTACKS[name](raw) as step:
                print("attacks", flush=True)
                while not wait((0,), 0):
                    step()
            if not os.read(0, 1):
                break
            print("rests", flush=True)


@contextlib.contextmanager
def running(*words: str, fds: tuple[int, ...], cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    """This file as a process of its own, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        command = [sys.executable, str(HERE), *words]
        child = subprocess.Popen(
            command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    finally:
        os.sched_setaffinity(0, before)
    with child:
        try:
            yield child
        finally:
            child.kill()


# Measuring


class Peer:
    """A hostile process, told when to attack and when to rest."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def turn(self, says: str) -> None:
        """End its turn; returns once the next one runs."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(b".")
        self._process.stdin.flush()
        if (
            not wait((self._process.stdout,), time.monotonic() + WAIT)
            or self._process.stdout.readline() != says.encode() + b"\n"
        ):
            raise RuntimeError(f"the peer does not say that it {says}")


def ratios(name: str, turns: int, milliseconds: float) -> list[Turn]:
    """The neighbour's requests a second while the peer rests, and while it attacks, by turns."""
    cpus = sorted(os.sched_getaffinity(0))
    ours, theirs, hostile, attacked = (end for _ in range(2) for end in socket.socketpair())
    with contextlib.ExitStack() as open_things:
        for end in (theirs, hostile, attacked):
            open_things.enter_context(end)
        served, fd = (theirs.fileno(), attacked.fileno()), hostile.fileno()
        open_things.enter_context(running("serve", *map(str, served), fds=served, cpu=cpus[-1]))
        peer = Peer(open_things.enter_context(running("attack", name, str(fd), fds=(fd,), cpu=cpus[0])))
        for end in (theirs, hostile, attacked):
            end.close()
        os.sched_setaffinity(0, {cpus[-1]})
        open_things.callback(os.sched_setaffinity, 0, cpus)
        frontend = open_things.enter_context(Frontend(ours))
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=256)
        drive(queue, milliseconds)
        found = []
        for _ in range(turns):
            resting = drive(queue, milliseconds)
            peer.turn("attacks")
            found.append(Turn(resting, drive(queue, milliseconds)))
            peer.turn("rests")
    return found


def drive(queue: Queue, milliseconds: float) -> float:
    """Keep DEPTH requests in flight for about that long; how many a second were done."""
    batches, started, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < milliseconds / 1000:
        left = {queue.submit([b"ping"], [4]) for _ in range(DEPTH)}
        while left:
            left -= {done.ticket for done in queue.completions(WAIT, among=left)}
        batches, elapsed = batches + 1, time.perf_counter() - started
    return batches * DEPTH / elapsed


def report(measured: dict[str, list[Turn]]) -> list[str]:
    """The median ratio of each attack, with its range."""
    resting = statistics.median(turn.resting for turns in measured.values() for turn in turns)
    lines = [f"  note  {resting:,.0f} requests a second, {DEPTH} in flight, beside a peer that rests"]
    for name, turns in measured.items():
        found = [turn.attacked / turn.resting for turn in turns]
        ratio = statistics.median(found)
        word = "met " if ratio >= GOAL else "MISS"
        text = f"rate {ratio:4.2f}x >= {GOAL:.2f}x  the neighbour of a device whose front-end {name}"
        lines.append(f"  {word}  {text} ({min(found):.2f}-{max(found):.2f})")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=TURNS, help="of each attack [%(default)s]")
    parser.add_argument("--milliseconds", type=float, default=MILLISECONDS, help="a turn [%(default)s]")
    args = parser.parse_args()
    match args.words:
        case ["serve", *fds]:
            serve([int(fd) for fd in fds])
        case ["attack", name, fd]:
            attack(name, int(fd))
        case []:
            try:
                print("\n".join(report({name: ratios(name, args.turns, args.milliseconds) for name in ATTACKS})))
            except (OSError, RuntimeError) as failure:
                print(f"neighbour: {failure}", file=sys.stderr)
                return 1
        case _:
            parser.error("say serve FD..., attack NAME FD, or nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
