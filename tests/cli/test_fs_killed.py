"""P05, P17 of `vhu-fs`: its front-end is killed with files open and mapped, or torn off anywhere, and nothing stays."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.testing import usage, wait_until
from vhostuser.testing.usage import Usage

from .programs import FS, SECONDS, listening
from .test_daemons import SCRIPT

FILES, MAPPED = 64, 24
VISITOR = """
import os, sys
from contextlib import ExitStack
from vhostuser import Frontend
from vhostuser.drivers.fs import SLOT, FsDriver
from vhostuser.drivers.fuse import FuseSession
front = Frontend.connect(sys.argv[1], wait=15)
front.share_memory(8 << 20)
driver, stack = FsDriver(FuseSession(front)), ExitStack()
for number in range(int(sys.argv[2])):
    nodeid, _ = stack.enter_context(driver._opened(f"{number}", os.O_RDWR))
    if number < int(sys.argv[3]):
        stack.enter_context(driver.mapped(nodeid, 0, number * SLOT, writable=True))
print(len(front.shm[0].mappings), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("handles", ["never", "prefer"])
def test_p05_a_front_end_is_killed_with_files_open_and_mapped(sock: Path, place: Path, handles: str) -> None:
    (shared := place / "shared").mkdir()
    for number in range(FILES):
        (shared / f"{number}").write_bytes(b"of the host")
    options = (
        "--shared-dir",
        shared,
        "--sandbox",
        "none",
        "--dax-window",
        "64M",
        "--dax-write",
        "--inode-file-handles",
        handles,
    )
    with listening(sock, *options, "--reconnect", module=FS) as back:
        read(sock)
        pid = serving_pid(back.process.pid)
        idle = usage(pid)
        for _ in range(2):
            killed(sock, pid)
            wait_until(lambda: no_more(usage(pid), idle), "all is given back", within=SECONDS)
            read(sock)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()


def serving_pid(pid: int) -> int:
    """The process that serves: the one that was started waits for it."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def read(sock: Path) -> None:
    """A front-end that does what is usual, and goes."""
    with Frontend.connect(sock, wait=SECONDS) as front:
        front.share_memory(4 << 20)
        assert b"".join(FsDriver(FuseSession(front)).read("7")) == b"of the host"


def no_more(now: Usage, then: Usage) -> bool:
    """A process holds at most what it did."""
    return all(one <= other for one, other in zip(now, then, strict=True))


def killed(sock: Path, pid: int) -> None:
    """A front-end that opens and maps files, which process `pid` has then, and is killed."""
    words = [sys.executable, "-W", "error", "-c", VISITOR, str(sock), str(FILES), str(MAPPED)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as visitor:
        assert visitor.stdout is not None
        assert int(visitor.stdout.readline()) > 0
        assert usage(pid).fds > FILES
        visitor.kill()


def test_p17_connections_to_a_share_that_are_torn_off_at_any_byte_leave_nothing(sock: Path, place: Path) -> None:
    (place / "shared").mkdir()
    (place / "shared" / "7").write_bytes(b"of the host")
    dice = random.Random(17)
    with listening(sock, "--shared-dir", place / "shared", "--sandbox", "none", "--reconnect", module=FS) as back:
        read(sock)
        pid = serving_pid(back.process.pid)
        idle = usage(pid)
        for _ in range(80):
            with socket.socket(socket.AF_UNIX) as front:
                front.connect(str(sock))
                front.sendall(SCRIPT[: dice.randrange(len(SCRIPT))])
        wait_until(lambda: no_more(usage(pid), idle), "nothing is left", within=SECONDS)
        read(sock)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
