"""Ends: of either process, of a connection, of serving. All that was held is given back, and the next may come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.devices import Scripted
from vhostuser import Backend, Disconnected, Frontend, MapRequest
from vhostuser.testing import BackendProcess, Served, is_listened_on, listening, sparse_file, usage, wait_until

MANY = "tests.process.devices:Many"
PAGE = 4096


@pytest.fixture
def place() -> Iterator[str]:
    """A path for a socket."""
    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        yield f"{folder}/s"


def fill(frontend: Frontend, count: int) -> None:
    frontend.share_memory(1 << 20)
    frontend.start_queue(0, size=16).exchange(count.to_bytes(4, "little"), 4)
    assert len(frontend.shm[0].mappings) == count


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_p05_the_back_end_is_killed_with_4096_mappings(number: int) -> None:
    with BackendProcess(MANY) as process:
        assert process.socket is not None
        with Frontend(process.socket) as frontend:
            fill(frontend, 4096)
            process.signal(number)
            with pytest.raises(Disconnected):
                frontend.serve(10)
            assert not frontend.shm[0].mappings
            code, errors = process.wait()
            assert code == (0 if number == signal.SIGTERM else -number), errors
            assert "Traceback" not in errors


FRONT_END = """
import sys, time
from vhostuser import Frontend
frontend = Frontend.connect(sys.argv[1], wait=10)
frontend.share_memory(1 << 20)
files = [open("/dev/null") for _ in range(64)]
frontend.start_queue(0, size=16).exchange((4096).to_bytes(4, "little"), 4)
print(len(frontend.shm[0].mappings), flush=True)
time.sleep(60)
"""


def test_p05_the_front_end_is_killed_with_4096_mappings(place: str) -> None:
    with BackendProcess(MANY, path=place) as process:
        wait_until(lambda: is_listened_on(place), "it listens")
        idle = usage(process.pid)
        for _ in range(3):
            visitor = subprocess.Popen([sys.executable, "-c", FRONT_END, place], stdout=subprocess.PIPE)
            with visitor:
                assert visitor.stdout is not None
                assert visitor.stdout.readline() == b"4096\n"
                visitor.send_signal(signal.SIGKILL)
            with Frontend.connect(place, wait=10) as frontend:
                fill(frontend, 10)
            wait_until(lambda: usage(process.pid) == idle, "all that the connections held is given back")
        process.signal(signal.SIGTERM)
        assert process.wait()[0] == 0
        assert not Path(place).exists()


@pytest.mark.timeout(120)
def test_p17_connections_that_come_and_go_leave_nothing(place: str) -> None:
    """300 here; `make soak` makes ten thousand of them, and tears a thousand off."""
    device = Scripted()
    with listening(device) as (path, served):
        before = None
        for at in range(300):
            with Frontend.connect(path, wait=10) as frontend:
                frontend.share_memory(1 << 20)
                assert frontend.start_queue(0, size=16).exchange(b"ping", 4) == b"ping"
            if at == 10:
                wait_until(lambda: served.backend.counters.closed == 11, "the connection is over")
                before = usage()
        wait_until(lambda: served.backend.counters.closed == 300, "the last connection is over")
        assert before is not None
        wait_until(lambda: all(now <= then for now, then in zip(usage(), before, strict=True)), "all is given back")


def test_p13_a_second_front_end_waits_its_turn() -> None:
    with listening(Scripted()) as (path, _):
        with Frontend.connect(path) as first, socket.socket(socket.AF_UNIX) as second:
            second.connect(path)
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.recv(1)
            first.share_memory(1 << 20)
        with Frontend.connect(path, wait=10) as third:
            assert third.queue_count == 2


@pytest.mark.parametrize("when", ["before", "idle", "connected", "mapping"])
def test_stop_ends_serving_from_any_thread(when: str) -> None:
    device = Scripted()
    served = Served(device)
    if when == "before":
        served.backend.stop()
    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        path = f"{folder}/s"
        thread = threading.Thread(target=served.backend.serve, args=(path,))
        thread.start()
        if when == "idle":
            wait_until(lambda: is_listened_on(path), "it listens")
        if when in ("connected", "mapping"):
            with Frontend.connect(path, wait=10) as frontend, sparse_file(PAGE) as file:
                frontend.share_memory(1 << 20)
                queue = frontend.start_queue(0, size=16)
                device.work = lambda device, request: bytes(device.shm[0].map_many([MapRequest(file, 0, PAGE)]).count(None))
                if when == "mapping":
                    os.eventfd_write(queue.kick.fileno(), 1)
                stopper = threading.Thread(target=served.backend.stop)
                stopper.start()
                with pytest.raises(Disconnected):
                    frontend.serve(10)
                stopper.join()
        served.backend.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert not Path(path).exists()


def test_a_stop_does_not_wait_long_for_a_request_that_does_not_end() -> None:
    """QEMU answers nothing while it waits for GET_VRING_BASE, so neither may it wait for ever."""
    device, go_on = Scripted(), threading.Event()
    device.work = lambda device, request: bytes(go_on.wait(30))
    with listening(device) as (path, served), Frontend.connect(path) as frontend:
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        head = queue._running().add([], [(0, 4)])
        assert head == 0
        os.eventfd_write(queue.kick.fileno(), 1)
        wait_until(lambda: served.backend.counters.messages > 5, "it is under way")
        started = time.monotonic()
        assert frontend.stop_queue(0) in (0, 1)
        assert time.monotonic() - started < 20
        go_on.set()
        assert frontend.start_queue(0, size=16).exchange(b"", 4) == b"\0"


class Spawner(Scripted):
    """Says which fds a child of its process has."""

    def __init__(self) -> None:
        super().__init__(work=lambda device, request: spawn())


def spawn() -> bytes:
    words = [sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True, close_fds=False).stdout


def test_a_child_of_a_device_inherits_nothing() -> None:
    """Not even if it is started carelessly: every fd is closed on exec, those that were received as well."""
    with BackendProcess("tests.process.test_ends:Spawner", stderr=subprocess.DEVNULL) as process:
        assert process.socket is not None
        with Frontend(process.socket) as frontend:
            frontend.share_memory(1 << 20)
            said = frontend.start_queue(0, size=16).exchange(b"go", 256, timeout=30)
    assert said in (b"[0, 1, 2, 3]\n", b"[0, 1, 2]\n")


def test_one_device_serves_one_front_end_after_the_other_with_one_backend() -> None:
    device = Scripted()
    backend = Backend(device)
    for turn in range(3):
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=backend.serve_fd, args=(theirs.detach(),))
        thread.start()
        with Frontend(ours) as frontend:
            frontend.share_memory(1 << 20)
            assert frontend.start_queue(0, size=16).exchange(b"ping", 4) == b"ping"
        thread.join(10)
        assert not thread.is_alive()
        assert device.resets == turn + 1
