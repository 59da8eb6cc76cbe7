"""F41, the filter of system calls: `vhu-fs` has it when it serves, and what it forbids is the end, in words."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.errors import Disconnected

from . import programs
from .programs import SECONDS, Program, listening, words
from .test_fs import children, state_of
from .test_fs_sandbox import FS as STAND_IN
from .test_fs_sandbox import asking, namespaces, root_only

NONE = ("--sandbox", "none")
FILTERED, FREE = "2", "0"
"""What /proc says of a process with a filter, and of one without."""


@pytest.fixture
def shared(place: Path) -> Path:
    folder = place / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("of the host")
    for path in (place, folder, folder / "sub"):
        path.chmod(0o777)
    return folder


@contextmanager
def driving(sock: Path) -> Iterator[FsDriver]:
    """The files of the share."""
    with Frontend.connect(sock, wait=SECONDS) as front:
        front.share_memory(8 << 20)
        yield FsDriver(FuseSession(front))


MODES = [
    pytest.param("namespace", marks=[root_only, namespaces]),
    pytest.param("chroot", marks=root_only),
    pytest.param("none"),
]


@pytest.mark.parametrize("mode", MODES)
def test_f41_the_process_that_serves_has_a_filter_by_default_and_ends_cleanly(sock: Path, shared: Path, mode: str) -> None:
    """The one outside, which has no socket and reads nothing of the guest's, has one of its own."""
    with listening(sock, "--shared-dir", shared, "--sandbox", mode, module=programs.FS) as back:
        with driving(sock) as share:
            assert [entry.name for entry in share.listdir()] == ["file", "sub"]
            (inside,) = children(back.process.pid)
            assert (state_of(inside, "Seccomp"), state_of(inside, "NoNewPrivs")) == (FILTERED, "1")
            assert (state_of(back.process.pid, "Seccomp"), state_of(back.process.pid, "NoNewPrivs")) == (FILTERED, "1")
            back.signal(signal.SIGTERM)
            assert back.end() == 0
        assert "filter" not in back.said
    assert not sock.exists()
    assert not Path(f"{sock}.pid").exists()


@root_only
@namespaces
def test_f41_libvirts_command_line_with_kill_serves(sock: Path, shared: Path) -> None:
    """As libvirt writes it, with threads, and a user namespace."""
    options = ("--shared-dir", str(shared), "--cache", "always", "--sandbox", "namespace", "--xattr", "--seccomp", "kill")
    rest = ("--thread-pool-size=16", "--rlimit-nofile=5000", "--log-level", "debug")
    maps = ("--uid-map=:0:100000:65535:", "--gid-map=:0:100000:65535:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(sock))
        listener.listen(1)
        fd = listener.fileno()
        back = Program(words(programs.FS, f"--fd={fd}", *options, *rest, *maps), pass_fds=[fd])
    with back:
        with driving(sock) as share:
            assert b"".join(share.read("file")) == b"of the host"
            (inside,) = children(back.process.pid)
            assert state_of(inside, "Seccomp") == FILTERED
        assert back.end() == 0


@pytest.mark.parametrize("action", ["kill", "trap"])
def test_f41_a_forbidden_call_is_the_end_and_says_so(sock: Path, shared: Path, action: str) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, "--seccomp", action, module=STAND_IN) as back:
        with asking(sock) as probe:
            assert probe.ask("read", "file") == "of the host"
            with pytest.raises(Disconnected):
                probe.ask("connect", "anybody")
        assert back.end() == 128 + signal.SIGSYS
        assert "killed by SIGSYS: it made a system call that is forbidden" in back.said
        assert ("in connect" in back.said) == (action == "trap")
    assert not sock.exists()


def test_f41_a_forbidden_call_is_only_logged_if_that_is_said(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, "--seccomp", "log", module=STAND_IN) as back:
        with asking(sock) as probe:
            assert probe.ask("connect", "nobody") in ("ECONNREFUSED", "EPERM")
            (inside,) = children(back.process.pid)
            assert state_of(inside, "Seccomp") == FILTERED
        assert back.end() == 0


def test_without_a_filter_there_is_none(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, "--seccomp", "none", module=STAND_IN) as back, asking(sock) as probe:
        probe.ask("read", "file")
        (inside,) = children(back.process.pid)
        assert {state_of(each, "Seccomp") for each in (inside, back.process.pid)} == {FREE}


# Syslog's socket, which is of a kind that sends to anybody


@pytest.fixture
def syslog(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place / "log"))
        sock.settimeout(SECONDS)
        yield sock


@pytest.fixture
def other() -> Iterator[socket.socket]:
    """Somebody else's, by an abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")
        sock.setblocking(False)
        yield sock


def logging_to(syslog: socket.socket, sock: Path, shared: Path, action: str) -> Program:
    options = ("--socket-path", sock, "--shared-dir", shared, *NONE, "--seccomp", action, "--syslog")
    return Program(words(STAND_IN, *options), SYSLOG=syslog.getsockname())


def said_to(syslog: socket.socket, text: str) -> str:
    """The line of syslog's that has these words; lines before it are passed over."""
    while text not in (line := syslog.recv(1 << 16).decode()):
        continue
    return line


def test_f41_syslogs_socket_leads_to_syslog_only(
    sock: Path, shared: Path, syslog: socket.socket, other: socket.socket
) -> None:
    name = other.getsockname()[1:].decode()
    with logging_to(syslog, sock, shared, "kill") as back:
        with asking(sock) as probe:
            for way in ("sendmsg", "dup", "fcntl"):
                assert probe.ask("syslog", way, name) == "EPERM", way
            with pytest.raises(BlockingIOError):
                other.recv(1)
            assert said_to(syslog, "Client connected").startswith("<14>[")
        assert back.end() == 0
        assert said_to(syslog, "Client disconnected").endswith("\0")
        assert back.said == ""


def test_f41_an_address_that_the_filter_sees_is_the_end_and_syslog_has_the_line_of_it(
    sock: Path, shared: Path, syslog: socket.socket, other: socket.socket
) -> None:
    with logging_to(syslog, sock, shared, "kill") as back:
        with asking(sock) as probe, pytest.raises(Disconnected):
            probe.ask("syslog", "sendto", other.getsockname()[1:].decode())
        assert back.end() == 128 + signal.SIGSYS
        assert said_to(syslog, "killed by SIGSYS: it made a system call that is forbidden").startswith("<11>[")
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_f41_syslog_may_go_and_the_share_stays(sock: Path, shared: Path, syslog: socket.socket) -> None:
    with logging_to(syslog, sock, shared, "kill") as back:
        with asking(sock) as probe:
            syslog.close()
            assert probe.ask("read", "file") == "of the host"
        assert back.end() == 0
