"""A path that is listened on: who may connect is settled before anybody can."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser import AddressError
from vhostuser.transport.listen import connect, listen


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
