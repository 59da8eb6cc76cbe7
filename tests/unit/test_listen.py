"""A path that is listened on: who may connect is settled before anybody can."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser import AddressError
from vhostuser.transport import listen as listening
from vhostuser.transport.listen import connect, listen

SECONDS = 15.0


@pytest.fixture
def sock() -> Iterator[Path]:
    """A path for a socket; nothing is there."""
    with tempfile.TemporaryDirectory(prefix="vhu") as name:
        yield Path(name) / "s"


def test_nobody_can_connect_before_a_name_has_its_rights(sock: Path) -> None:
    def prepare() -> None:
        assert stat.S_ISSOCK(sock.stat().st_mode)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(sock))
        sock.chmod(0o660)

    with listen(sock, prepare), connect(sock):
        assert stat.S_IMODE(sock.stat().st_mode) == 0o660


def test_a_name_that_cannot_be_prepared_is_gone(sock: Path) -> None:
    def prepare() -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(AddressError, match=r"cannot listen on .*: Operation not permitted \(EPERM\)"):
        listen(sock, prepare)
    assert not sock.exists()


def test_what_the_preparation_raises_is_passed_on(sock: Path) -> None:
    def prepare() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        listen(sock, prepare)
    assert not sock.exists()


def test_a_name_that_became_another_s_meanwhile_is_left_alone(sock: Path) -> None:
    def prepare() -> None:
        os.unlink(sock)
        sock.write_text("of somebody else")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        listen(sock, prepare)
    assert sock.read_text() == "of somebody else"


def test_a_name_that_somebody_else_takes_before_it_is_listened_on_is_an_error_and_stays_theirs(sock: Path) -> None:
    """As by a program that unlinks whatever is there."""
    with socket.socket(socket.AF_UNIX) as other:

        def prepare() -> None:
            os.unlink(sock)
            other.bind(str(sock))
            other.listen(1)

        with pytest.raises(AddressError, match="somebody else has taken the name meanwhile"):
            listen(sock, prepare)
        with connect(sock):
            pass


def test_a_name_that_is_bound_and_not_yet_listened_on_is_in_use(sock: Path) -> None:
    """A connection to it is refused as by a stale one."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sock))
        with pytest.raises(AddressError, match=f"it is in use by pid {os.getpid()} "):
            listen(sock)
        other.listen(1)
        with connect(sock):
            pass


def test_a_stale_name_is_replaced_and_gone_in_the_end(sock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sock))
    with listen(sock) as listener, connect(sock):
        listener.remove_name()
        assert not sock.exists()


def test_a_stale_name_that_becomes_another_s_while_it_is_looked_at_stays_theirs(
    sock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sock))
    with socket.socket(socket.AF_UNIX) as other:

        def probed(name: str) -> bool:
            if not other.getsockname():
                os.unlink(name)
                other.bind(name)
            return True

        monkeypatch.setattr(listening, "_refuses", probed)
        with pytest.raises(AddressError, match="it is in use"):
            listen(sock)
        other.listen(1)
        with connect(sock):
            pass


def test_a_lock_that_is_never_given_up_keeps_nobody_from_listening(sock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can have it, whether or not they may write to the directory."""
    monkeypatch.setattr(listening, "TURN", 0.05)
    folder = sock.parent.stat()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        lock.bind(b"\0vhostuser/%x/%x/s" % (folder.st_dev, folder.st_ino))
        with listen(sock), connect(sock):
            pass


START = """
import os, sys
from vhostuser import AddressError
from vhostuser.transport.listen import listen
sys.stdin.readline()
try:
    sock = listen(sys.argv[1], lambda: os.sched_yield())
except AddressError as error:
    print(error, flush=True)
else:
    print("listens", flush=True)
    sys.stdin.readline()
    sock.remove_name()
"""


def test_of_those_that_start_at_a_stale_name_at_the_same_time_one_gets_it(sock: Path) -> None:
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", START, str(sock)], stdin=-1, stdout=-1, text=True, bufsize=1)
            )
            for _ in range(4)
        ]
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(sock))
        for process in started:
            tell(process)
        said = [said_by(process) for process in started]
        assert sorted("it is in use by pid" in line for line in said) == [False, True, True, True], said
        winner = started[said.index("listens\n")]
        with connect(sock):
            pass
        tell(winner)
        assert winner.wait(SECONDS) == 0
        assert not sock.exists()


def tell(process: subprocess.Popen[str]) -> None:
    """Let a process go on."""
    assert process.stdin
    process.stdin.write("\n")


def said_by(process: subprocess.Popen[str]) -> str:
    """The next line of a process's."""
    assert process.stdout
    return process.stdout.readline()


def test_a_name_that_was_touched_is_removed_all_the_same(sock: Path) -> None:
    with listen(sock) as listener:
        os.utime(sock, (0, 0))
        listener.remove_name()
        assert not sock.exists()
