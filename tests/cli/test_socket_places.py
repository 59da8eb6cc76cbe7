"""P11: what lies where a socket should be, and is none, stays; whatever it points to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from vhostuser.cli.trace_ends import FrontEnds
from vhostuser.conformance.frontend_peer import Awaited, Launched
from vhostuser.transport.listen import connect
from vhostuser.transport.loop import SignalWaker

from .programs import BLK, RNG, Program, listening, one_line, run

PLACES = ["fifo", "directory", "dangling", "link to a stale socket", "link to a directory"]


@pytest.mark.parametrize("module", [RNG, BLK])
@pytest.mark.parametrize("name", PLACES)
def test_p11_what_is_no_socket_stays(place: Path, file: Path, module: str, name: str) -> None:
    os.mkfifo(place / "fifo")
    (place / "directory").mkdir()
    (place / "dangling").symlink_to(place / "nowhere")
    (place / "link to a stale socket").symlink_to(place / "stale")
    (place / "link to a directory").symlink_to(place / "directory")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place / "stale"))
    before = {each: each.lstat().st_ino for each in place.iterdir()}
    options = ("--blk-file", file) if module == BLK else ()
    done = run(module, "--socket-path", place / name, *options, "--log-level", "error")
    assert done.returncode == 1
    assert "cannot listen on" in one_line(done.stderr)
    assert {each: each.lstat().st_ino for each in place.iterdir()} == before


# Names that others take

HOLDS = """
import sys
from vhostuser.transport.listen import listen

def prepare():
    print("bound", flush=True)
    sys.stdin.readline()

with listen(sys.argv[1], prepare) as listener:
    print("listens", flush=True)
    sys.stdin.readline()
    listener.remove_name()
"""


def test_who_starts_while_another_one_is_about_to_listen_is_refused_and_takes_nothing(sock: Path) -> None:
    with Program([sys.executable, "-c", HOLDS, str(sock)]) as first:
        assert first.line() == "bound"
        inode = sock.lstat().st_ino
        done = run(RNG, "--socket-path", sock, "--log-level", "error")
        assert done.returncode == 1
        assert f"it is in use by pid {first.process.pid}" in one_line(done.stderr)
        first.send("listen")
        assert first.line() == "listens"
        assert sock.lstat().st_ino == inode
        with connect(sock):
            first.send("end")
            assert first.end() == 0
    assert not sock.exists()


def test_a_daemon_leaves_the_name_alone_that_is_another_s_when_it_ends(sock: Path) -> None:
    with listening(sock, module=RNG) as first, socket.socket(socket.AF_UNIX) as other:
        sock.unlink()
        other.bind(str(sock))
        other.listen(1)
        first.signal(signal.SIGTERM)
        assert first.end() == 0
        with connect(sock):
            pass


class Closes(Protocol):
    """What listens on a path until it is closed."""

    def close(self) -> None:
        """Listen no more."""


ENDS: dict[str, Callable[[str, SignalWaker], Closes]] = {
    "trace": FrontEnds,
    "awaited": lambda path, waker: Awaited(path),
    "launched": lambda path, waker: Launched("true {socket}", path=path),
}


@pytest.mark.parametrize("name", ENDS)
def test_who_ends_leaves_the_name_alone_that_is_another_s_by_then(sock: Path, name: str) -> None:
    with SignalWaker() as waker, contextlib.closing(ENDS[name](str(sock), waker)):
        sock.unlink()
        sock.write_text("of somebody else")
    assert sock.read_text() == "of somebody else"
