"""What is over is let go of, and nobody waits for ever for a listener that is busy."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from unittest import mock

import pytest

from vhostuser import AddressError
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import ServedRawFrontend, wait_until
from vhostuser.transport import listen

from .conftest import Attacked


def test_p13_a_connection_to_a_busy_listener_ends_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener, mock.patch.object(listen, "CONNECT_TIMEOUT", 1):
        listener.bind(path)
        listener.listen(1)
        try:
            waiting += [listen.connect(path), listen.connect(path)]  # as many as a backlog of 1 takes
            with pytest.raises(AddressError, match="EAGAIN"):
                listen.connect(path)
        finally:
            for sock in waiting:
                sock.close()


def test_w35_a_stopped_queue_keeps_no_old_memory(raw: ServedRawFrontend) -> None:
    raw.share_memory()
    raw.set_up_queue()
    old = os.fstat(raw.share_memory().fileno()).st_ino
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    raw.share_memory()
    wait_until(lambda: f" {old} " not in Path("/proc/self/maps").read_text(), "the old memory is unmapped")


def test_an_exchange_that_finds_no_room_takes_none(attacked: Attacked) -> None:
    frontend = attacked.frontend
    frontend.share_memory(1 << 16)
    queue = frontend.start_queue(0, size=16)
    free = frontend._sharing.arena.free if frontend._sharing.arena else 0
    with pytest.raises(MemoryError):
        queue.exchange(bytes(10000), reply_size=1 << 20)
    assert frontend._sharing.arena is not None
    assert frontend._sharing.arena.free == free


def test_a_request_with_an_fd_that_is_none_leaves_no_trace(attacked: Attacked) -> None:
    frontend, fd = attacked.frontend, os.eventfd(0)
    os.close(fd)
    before = frontend._session.state
    with pytest.raises(OSError, match="Bad file descriptor"):
        frontend.request(Q.SET_VRING_KICK, U64(0), [fd])
    assert frontend._session.state == before
    frontend.request(Q.GET_FEATURES)
