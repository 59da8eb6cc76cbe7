"""What is behind an fd is told without opening it or waiting."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from vhostuser.trace.describe import described


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"12345")
    with path.open("rb") as file:
        note = described(file.fileno())
    assert (note.kind, note.path, note.size, note.access, note.seals) == ("file", str(path), 5, "r", ())
    assert note.ino == path.stat().st_ino


def test_a_memfd_and_its_seals() -> None:
    fd = os.memfd_create("it", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        note = described(fd)
    finally:
        os.close(fd)
    assert (note.kind, note.size, note.access, note.seals) == ("memfd", 4096, "rw", ("seal", "shrink"))


def test_what_is_no_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    one, other = socket.socketpair()
    fds = {
        "eventfd": os.eventfd(0),
        "directory": os.open(tmp_path, os.O_RDONLY),
        "device": os.open("/dev/null", os.O_WRONLY),
    }
    try:
        assert {kind: described(fd).kind for kind, fd in fds.items()} == {kind: kind for kind in fds}
        assert (described(reader).kind, described(one.fileno()).kind) == ("pipe", "socket")
        assert (described(reader).access, described(writer).access) == ("r", "w")
    finally:
        for fd in (reader, writer, *fds.values()):
            os.close(fd)
        one.close()
        other.close()


def test_a_number_that_is_no_fd() -> None:
    assert described(987654).kind == "other"
