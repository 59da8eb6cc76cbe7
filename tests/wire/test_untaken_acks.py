"""A back-end that asks on and on and reads no answer: it loses its channel in time, and signals are heard meanwhile."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.halves import HALVES, using
from vhostuser import Frontend
from vhostuser.memory import mapping
from vhostuser.memory.table import new_core, new_quota, new_table
from vhostuser.plain.choice import new_server
from vhostuser.plain.frames import EXPIRED, UNMAP, WAITING, YES
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.testing import DEADLINE, RawBackend, Wire, memory_file, message, wait_until

PAGE: Final = 4096
MAP = BackendRequest.SHMEM_MAP
NO_CHANCE: Final = 6.0
"""Seconds after which the back-end ends what would never end."""


class Interrupt(Exception):
    """What a signal's handler raises."""


@contextlib.contextmanager
def signals(seconds: float, handler: Callable[[], None]) -> Iterator[None]:
    """In the block there is one so often."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Deaf(threading.Thread):
    """It maps and unmaps a page without end, and reads nothing."""

    def __init__(self, channel: Wire) -> None:
        super().__init__(daemon=True)
        self.socket, self.count, self.ends = channel.socket, 0, threading.Event()
        channel.pump = None
        self.start()

    def run(self) -> None:
        mapped, unmapped = (message(request, Mmap(0, 0, 0, PAGE), flags=9) for request in (MAP, UNMAP))
        self.socket.settimeout(0.05)
        with memory_file(1) as file, contextlib.suppress(OSError):
            while not self.ends.is_set():
                self.send(mapped, [file.fileno()])
                self.send(unmapped, [])

    def send(self, data: bytes, fds: list[int]) -> None:
        """One message, whole, however long it takes; none any more at the end."""
        while not self.ends.is_set():
            with contextlib.suppress(TimeoutError):
                socket.send_fds(self.socket, [data], fds)
                self.count += 1
                return

    def end(self) -> None:
        self.ends.set()
        self.join(DEADLINE)
        self.socket.settimeout(None)


@contextlib.contextmanager
def deaf(reply_timeout: float) -> Iterator[tuple[Frontend, Deaf]]:
    with RawBackend() as raw, raw.frontend(reply_timeout=reply_timeout) as frontend:
        thread = Deaf(raw.channel)
        try:
            yield frontend, thread
        finally:
            thread.end()


def test_signals_do_not_put_off_the_end_of_the_channel() -> None:
    heard: list[float] = []
    with deaf(0.6) as (frontend, thread), signals(0.1, lambda: heard.append(time.monotonic())):
        guard = threading.Timer(NO_CHANCE, thread.socket.shutdown, [socket.SHUT_RDWR])
        guard.start()
        began = time.monotonic()
        while not frontend.counters.closed and time.monotonic() < began + 2 * NO_CHANCE:
            frontend.serve(1)
        assert time.monotonic() - began < NO_CHANCE
        guard.cancel()
        guard.join()
        assert len(heard) >= 3


def test_what_a_handler_raises_comes_through_and_the_answers_go_on() -> None:
    def interrupt() -> None:
        raise Interrupt

    with deaf(60) as (frontend, thread):
        for _ in range(2):
            began = time.monotonic()
            with signals(0.4, interrupt), pytest.raises(Interrupt):
                frontend.serve(30)
            assert time.monotonic() - began < NO_CHANCE
        thread.end()
        answers = b""
        reader = threading.Thread(target=frontend.serve, args=[1.0])
        reader.start()
        while len(answers) < 20 * thread.count:
            answers += thread.socket.recv(1 << 16)
        reader.join()
        assert answers == (YES[MAP] + YES[UNMAP]) * (thread.count // 2) + YES[MAP] * (thread.count % 2)
        assert not frontend.counters.closed


@pytest.mark.parametrize("half", HALVES)
def test_answers_that_are_taken_in_pieces_are_whole(half: str) -> None:
    """A socket of TCP takes any number of bytes, and not only whole messages."""
    pages = 1000
    with using(half), tcp_pair() as (ours, theirs), memory_file(1) as file:
        base = mapping.reserve(pages * PAGE)
        core = new_core(base, pages * PAGE, new_table(), new_quota("device", pages), populate=False)
        for page in range(pages):
            assert core.map(file.fileno(), page * PAGE, PAGE, 0, 0)
        server = new_server(ours, {3: core}, DEADLINE)
        asked = b"".join(message(UNMAP, Mmap(3, 0, page * PAGE, PAGE), flags=9) for page in range(pages))
        theirs.sendall(asked)
        wait_until(lambda: len(ours.recv(len(asked), socket.MSG_PEEK)) == len(asked), "all requests")
        got = bytearray()
        reader = threading.Thread(target=read_slowly, args=(theirs, got, pages * len(YES[UNMAP])), daemon=True)
        reader.start()
        results, ends = set(), time.monotonic() + DEADLINE
        while (server.messages < pages or server.unfinished) and time.monotonic() < ends:
            results.add(server.run((), 0.1))
        reader.join(DEADLINE)
        mapping.release(base, pages * PAGE)
        assert bytes(got) == YES[UNMAP] * pages
        assert results <= {EXPIRED, WAITING}


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.socket()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with theirs:
            theirs.connect(listener.getsockname())
            ours, _ = listener.accept()
            with ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                yield ours, theirs


def read_slowly(sock: socket.socket, got: bytearray, size: int) -> None:
    while len(got) < size:
        got += sock.recv(777)
        time.sleep(0.0005)
