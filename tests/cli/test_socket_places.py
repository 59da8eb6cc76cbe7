"""P11: what lies where a socket should be, and is none, stays; whatever it points to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from .programs import BLK, RNG, one_line, run

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
