"""Who gave the back-end its channel may still have that very socket, and set what it likes: deadlines hold all the same."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest

from vhostuser import DeadlineExpired
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64
from vhostuser.shared_memory import MapRequest
from vhostuser.testing import DEADLINE, ServedRawFrontend, Wire, memory_file, message, raw_frontend
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd, close_all

from .devices import Scripted

B, Q = BackendRequest, FrontendRequest
PAGE: Final = 4096
FOR_EVER: Final = bytes(16)
"""SO_RCVTIMEO and SO_SNDTIMEO: no timeout."""


@contextmanager
def sharing(device: Scripted) -> Iterator[tuple[ServedRawFrontend, socket.socket]]:
    """A front-end that keeps both ends of the channel: the end of the back-end, and nobody who reads the other one."""
    with raw_frontend(device, reply_timeout=0.3) as raw:
        raw.start()
        assert device.ready.wait(DEADLINE)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            raw.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                theirs.setsockopt(socket.SOL_SOCKET, option, FOR_EVER)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            yield raw, theirs


def map_one(device: Scripted, file: OwnedFd) -> None:
    device.shm[0].map(file, shm_offset=0, len=PAGE)


def map_two(device: Scripted, file: OwnedFd) -> None:
    device.shm[0].map_many([MapRequest(file, at * PAGE, PAGE) for at in range(2)])


def map_many(device: Scripted, file: OwnedFd) -> None:
    """More than the socket has room for."""
    device.shm[0].map_many([MapRequest(file, at * PAGE, PAGE) for at in range(64)])


def tell(device: Scripted, file: OwnedFd) -> None:
    port = device.shm[0]._port
    with port.lock:
        port.send_all([(B.CONFIG_CHANGE_MSG, None, ())] * 64)


@pytest.mark.parametrize("ask", [map_one, map_many, tell])
def test_w42_no_timeout_of_the_socket_replaces_the_deadline(ask: Callable[[Scripted, OwnedFd], None]) -> None:
    device = Scripted()
    with sharing(device) as (raw, _), memory_file() as file:
        with pytest.raises(DeadlineExpired):
            ask(device, file)
        assert not device.shm[0].mappings
        raw.alive()


@pytest.mark.parametrize("ask", [map_one, map_two])
def test_credentials_that_the_kernel_adds_to_answers_change_nothing(ask: Callable[[Scripted, OwnedFd], None]) -> None:
    """SO_PASSCRED, likewise."""
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file, ThreadPoolExecutor(1) as pool:
        raw.start()
        assert device.ready.wait(DEADLINE)
        ours, theirs = socket.socketpair()
        with theirs, Wire(ours) as channel:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            raw.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
            waits = pool.submit(ask, device, file)
            for _ in range(1 if ask is map_one else 2):
                close_all(channel.receive().fds)
                channel.send(message(B.SHMEM_MAP, U64(0), flags=ACK))
            waits.result(DEADLINE)
            assert len(device.shm[0].mappings) == (1 if ask is map_one else 2)


@pytest.mark.parametrize("ask", [map_one, tell])
def test_w42_a_socket_that_does_not_block_is_waited_for(ask: Callable[[Scripted, OwnedFd], None]) -> None:
    """O_NONBLOCK, too, is of the socket, not of the fd."""
    device = Scripted()
    with sharing(device) as (raw, theirs), memory_file() as file:
        theirs.setblocking(False)
        with pytest.raises(DeadlineExpired, match=r"within 0.3 s"):
            ask(device, file)
        raw.alive()
