"""The back-end channel, from its other ends; and answers, of either channel, that nobody asked for."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from vhostuser import Disconnected, RemoteProtocolError
from vhostuser.protocol.numbers import REPLY, BackendRequest, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Mmap, VringState
from vhostuser.shared_memory import MapRequest
from vhostuser.testing import DEADLINE, RawBackend, Wire, memory_file, message, raw_frontend, usage
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd, close_all

from .conftest import Attacked
from .devices import Scripted

B, Q, F = BackendRequest, FrontendRequest, ProtocolFeature
PAGE = 4096
SO_PASSPIDFD = 76
YES = message(B.SHMEM_MAP, U64(0), flags=ACK)
WRONG = {
    **{f"w01_version_{flags}": message(B.SHMEM_MAP, U64(0), flags=flags | REPLY) for flags in (0, 2, 3)},
    **{f"w02_bit_{bit}": message(B.SHMEM_MAP, U64(0), flags=ACK | 1 << bit) for bit in range(4, 32)},
    **{f"w03_size_{size}": message(B.SHMEM_MAP, flags=ACK, size=size) for size in (4097, 1 << 16, 1 << 31, (1 << 32) - 1)},
    "w21_of_nothing_asked": message(B.CONFIG_CHANGE_MSG, U64(0), flags=ACK),
    "w21_of_no_request": message(77, U64(0), flags=ACK),
    "w21_a_request": message(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE)),
    "w50_random": random.Random(50).randbytes(1 << 16),
    "w50_http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "w50_other_role": message(Q.GET_FEATURES),
    "w51_big_endian": struct.pack(">IIIQ", B.SHMEM_MAP, ACK, 8, 0),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_no_acknowledgement_ends_the_channel_alone(data: bytes) -> None:
    """Whether it comes instead of the answer, or waits in the socket when the device asks."""
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file, ThreadPoolExecutor(1) as pool:
        channel = raw.start()
        assert device.ready.wait(DEADLINE)
        for early in (False, True):
            if early:
                channel.send(data)
            waits = pool.submit(device.shm[0].map, file, shm_offset=0, len=PAGE)
            if not early:
                close_all(channel.receive().fds)
                channel.send(data)
            with pytest.raises((RemoteProtocolError, Disconnected)):
                waits.result(DEADLINE)
            channel.closes()
            assert not device.shm[0].mappings
            raw.alive()
            channel = raw.open_requests()
        waits = pool.submit(device.shm[0].map, file, shm_offset=0, len=PAGE)
        close_all(channel.receive().fds)
        channel.send(YES)
        waits.result(DEADLINE)


def map_one(device: Scripted, file: OwnedFd, at: int = 0) -> None:
    device.shm[0].map(file, shm_offset=at * PAGE, len=PAGE)


def map_two(device: Scripted, file: OwnedFd) -> None:
    device.shm[0].map_many([MapRequest(file, 0, PAGE), MapRequest(file, PAGE, PAGE)])


def tell(device: Scripted, file: OwnedFd) -> None:
    port = device.shm[0]._port
    with port.lock:
        port.send_all([(B.CONFIG_CHANGE_MSG, None, ())])


@pytest.mark.parametrize("ask", [map_one, map_two, tell])
def test_w21_an_answer_ahead_of_its_request_is_none(ask: Callable[[Scripted, OwnedFd], None]) -> None:
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file:
        channel = raw.start()
        assert device.ready.wait(DEADLINE)
        channel.send(YES)
        with pytest.raises(RemoteProtocolError, match="a message came that nobody asked for: request 9, flags 0x5"):
            ask(device, file)
        channel.closes()
        assert not device.shm[0].mappings
        raw.alive()


def test_w21_a_channel_is_not_out_of_step_for_long() -> None:
    """In the plain way an answer that nobody asked for is taken for the next one's, and found after 64 requests."""
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file, ThreadPoolExecutor(1) as pool:
        channel = raw.start()
        assert device.ready.wait(DEADLINE)
        for at in range(64):
            waits = pool.submit(map_one, device, file, at)
            close_all(channel.receive().fds)
            channel.send(YES if at else YES + YES)
            waits.result(DEADLINE)
        with pytest.raises(RemoteProtocolError, match="nobody asked for"):
            map_one(device, file, 64)
        channel.closes()
        raw.alive()


def brings_pidfds() -> bool:
    """This kernel knows SO_PASSPIDFD (Linux 6.5)."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
        except OSError:
            return False
        return True


@pytest.mark.skipif(not brings_pidfds(), reason="no message brings a pidfd in this kernel")
@pytest.mark.parametrize("many", [False, True])
def test_w12_an_fd_that_the_kernel_adds_to_an_answer_is_closed(many: bool) -> None:
    """Who gave the channel may keep both ends of it, and have each message bring a pidfd of its sender (SO_PASSPIDFD)."""
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file, ThreadPoolExecutor(1) as pool:
        raw.start()
        assert device.ready.wait(DEADLINE)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
            raw.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
            before = usage().fds
            request = MapRequest(file, 0, PAGE)
            waits = pool.submit(device.shm[0].map_many, [request]) if many else pool.submit(map_one, device, file)
            with Wire(ours) as channel:
                close_all(channel.receive().fds)
                channel.send(YES)
                with pytest.raises((RemoteProtocolError, Disconnected), match="fds"):
                    waits.result(DEADLINE)
                raw.alive()
                assert usage().fds == before - 1  # the channel is over


@pytest.mark.parametrize("index", [1, 0xFF, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF])
def test_w37_a_front_end_hears_of_no_ring_that_it_has_not(index: int) -> None:
    features = PROTOCOL_FEATURES | 1 << F.INBAND_NOTIFICATIONS
    with RawBackend(protocol_features=features) as raw, raw.frontend(inband=True) as frontend:
        assert "INBAND_NOTIFICATIONS" in frontend.protocol_features
        for request in (B.VRING_CALL, B.VRING_ERR):
            raw.channel.refused(request, VringState(index, 0))
            raw.channel.accepted(request, VringState(0, 0))
        assert frontend.counters.refused == 2


def test_w21_a_reply_ahead_of_its_request_is_none(attacked: Attacked) -> None:
    raw, frontend = attacked
    raw.main.send(message(Q.GET_STATUS, U64(7), flags=ACK))
    with pytest.raises(RemoteProtocolError, match="a message came that nobody asked for: request 40, flags 0x5"):
        frontend.request(Q.GET_STATUS)
    assert Q.GET_STATUS not in raw.seen
    with pytest.raises(Disconnected):
        frontend.request(Q.GET_STATUS)
