"""What the proxy costs a message: request and reply between two processes, straight and through it, all on one CPU.

The rounds of all rows are interleaved, so that each sees the machine in the same mood; the figure of a row is the median
over the rounds of what one message takes longer than straight. `--soak` passes a million messages, and looks at what the
proxy holds before and after.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64
from vhostuser.testing import usage
from vhostuser.testing.files import message
from vhostuser.testing.wire import ACK
from vhostuser.trace.conversation import Conversation
from vhostuser.trace.event import Event
from vhostuser.trace.lines import Lines
from vhostuser.trace.pcapng import PcapngWriter
from vhostuser.trace.proxy import BACKLOG, Proxy

ROUNDS, COUNT, SOAK = 21, 2000, 1_000_000
GOAL: Final = 25.0
ASK: Final = message(FrontendRequest.SET_FEATURES, U64(1 << 30), flags=9)
ANSWER: Final = message(FrontendRequest.SET_FEATURES, U64(0), flags=ACK)
SOAK_BOUND: Final = 2 << 20
Sink = Callable[[Event], None]


def forget(event: Event) -> None:
    """The sink of a proxy that only passes on."""


def captured() -> Sink:
    """The sink that writes a capture."""
    return PcapngWriter(open(os.devnull, "wb", buffering=0)).write  # it lives as long as the process


def captured_and_shown() -> Sink:
    """The sink of `vhu trace -w FILE`, as far as what takes time."""
    write, conversation, lines = captured(), Conversation(), Lines(colour=False)
    out = os.open(os.devnull, os.O_WRONLY)

    def sink(event: Event) -> None:
        write(event)
        for item in conversation.take(event):
            os.write(out, (lines.line(item) or "").encode())

    return sink


@contextmanager
def process(work: Callable[[], None]) -> Iterator[int]:
    """A process that does this; killed in the end."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def answer_all(sock: socket.socket) -> None:
    """Answer each message with another."""
    while sock.recv(len(ASK)):
        sock.send(ANSWER)


def ask(sock: socket.socket, count: int) -> float:
    """Microseconds that a message takes, of `count` requests and as many replies."""
    began = time.perf_counter()
    for _ in range(count):
        sock.send(ASK)
        sock.recv(len(ANSWER))
    return (time.perf_counter() - began) / count / 2 * 1e6


@contextmanager
def straight() -> Iterator[socket.socket]:
    """A socket to somebody who answers."""
    ours, theirs = socket.socketpair()

    def work() -> None:
        ours.close()
        answer_all(theirs)

    with ours, theirs, process(work):
        theirs.close()
        yield ours


@contextmanager
def proxied(make_sink: Callable[[], Sink]) -> Iterator[tuple[socket.socket, int]]:
    """The same through a proxy in a process of its own, and that process."""
    ours, front = socket.socketpair()
    with straight() as back, ours, front:

        def work() -> None:
            ours.close()
            gc.freeze()
            Proxy(front, back, make_sink()).run()

        with process(work) as pid:
            front.close()
            yield ours, pid


def busy(pid: int) -> float:
    """Microseconds that a process was on a processor."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1000


def rest(pid: int) -> None:
    """Wait until a process has done all that it had to do, so that the next round is not disturbed by it."""
    before = -1.0
    while (now := busy(pid)) != before:
        before = now
        time.sleep(0.005)


def compare(rows: dict[str, Callable[[], Sink]], rounds: int, count: int) -> None:
    """Print what a message takes straight, and what each row adds to it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    taken: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in rows}
    spent: dict[str, list[float]] = {name: [] for name in rows}
    with ExitStack() as opened:
        direct = opened.enter_context(straight())
        through = {name: opened.enter_context(proxied(make)) for name, make in rows.items()}
        for _ in range(rounds):
            ask(direct, BACKLOG)
            taken.append(ask(direct, count))
            for name, (sock, pid) in through.items():
                ask(sock, BACKLOG)  # from here on as much waits for the sink as ever does: each message pays for one
                before = busy(pid)
                added[name].append(ask(sock, count) - taken[-1])
                spent[name].append((busy(pid) - before) / count / 2)
                rest(pid)
    print(f"{'straight':36} {statistics.median(taken):6.1f} us a message")
    for name, each in added.items():
        own, least = statistics.median(spent[name]), min(each)
        print(f"{name:36} {statistics.median(each):+6.1f} us a message, at best {least:+.1f}; its processor time {own:.1f}")
    first = statistics.median(added[next(iter(rows))])
    print(f"  {'met ' if first <= GOAL else 'MISS'}  the proxy adds {first:.1f} us <= {GOAL:g} us to a message")


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(name: str, make: Callable[[], Sink], count: int) -> int:
    """Pass `count` messages; whether the proxy holds more after that than before. The exit code."""
    with proxied(make) as (sock, pid):
        ask(sock, count // 20)
        before, held = resident(pid), usage(pid)
        ask(sock, count // 2)
        grown, now = resident(pid) - before, usage(pid)
    print(f"{name}: {count} messages, resident memory {grown / 1024:+.0f} KiB, from {held} to {now}")
    return int(grown > SOAK_BOUND or now != held)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--soak", action="store_true")
    options = parser.parse_args()
    rows: dict[str, Callable[[], Sink]] = {
        "passed on": lambda: forget,
        "passed on and captured (pcapng)": captured,
        "passed on, captured and shown": captured_and_shown,
    }
    if options.soak:
        return max([soak(name, make, SOAK) for name, make in rows.items()])
    compare(rows, options.rounds, options.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
