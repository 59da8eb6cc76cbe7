"""Who waits is not deaf: both channels at once, peers that never answer, peers that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from vhostuser import DeadlineExpired, Disconnected, RequestFailed
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap, VringState
from vhostuser.testing import RawBackend, ServedRawFrontend, Wire, raw_frontend, sparse_file
from vhostuser.testing.files import message
from vhostuser.transport.fds import OwnedFd, close_all

from .devices import Scripted

Q, B = FrontendRequest, BackendRequest
PAGE = 4096
ACK = 5
WATCHDOG = 20
"""Seconds after which a test has hung."""


@contextmanager
def mapping(*, reply_timeout: float = 10.0) -> Iterator[tuple[ServedRawFrontend, Wire, Scripted, Future[None]]]:
    """A device whose `map` waits for the front-end, which has the SHMEM_MAP and has not answered."""
    device = Scripted()
    with (
        raw_frontend(device, reply_timeout=reply_timeout) as raw,
        sparse_file(PAGE) as file,
        ThreadPoolExecutor(1) as pool,
    ):
        channel = raw.start()
        assert device.ready.wait(WATCHDOG)
        waits = pool.submit(device.shm[0].map, file, shm_offset=0, len=PAGE)
        try:
            frame = channel.receive()
            close_all(frame.fds)
            assert frame.request == B.SHMEM_MAP
            assert len(frame.fds) == 1
            yield raw, channel, device, waits
        finally:
            raw.close()


def answer(channel: Wire, request: int, status: int = 0) -> None:
    channel.request(request, U64(status), flags=ACK)


@pytest.mark.parametrize("status", [0, 1])
def test_w43_the_back_end_serves_while_its_map_waits(status: int) -> None:
    """The front-end sets another memory table in between, and answers only then."""
    with mapping() as (raw, channel, device, waits):
        raw.share_memory()
        raw.accepted(Q.SET_VRING_ENABLE, VringState(1, 1))
        assert not waits.done()
        answer(channel, B.SHMEM_MAP, status)
        if status:
            with pytest.raises(RequestFailed, match="status 0x1"):
                waits.result(WATCHDOG)
        else:
            waits.result(WATCHDOG)
        assert len(device.shm[0].mappings) == (not status)
        raw.alive()


@pytest.mark.parametrize("request_first", [True, False], ids=["request-first", "map-first"])
def test_w43_the_front_end_answers_while_its_request_waits(request_first: bool) -> None:
    """The back-end asks for a mapping before it replies, and waits for the answer."""
    with RawBackend() as raw, raw.frontend() as frontend, sparse_file(PAGE) as file:
        statuses: list[int] = []
        raw.channel.pump = None

        def reply(frame: Frame[OwnedFd]) -> bytes:
            if request_first:
                statuses.append(raw.channel.status(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file]))
            else:
                answer_of_map = raw.channel.receive()
                statuses.append(U64.unpack(answer_of_map.payload).value)
            return message(frame.request, U64(0), flags=ACK)

        raw.raw_answers[Q.SET_MEM_TABLE] = reply
        if not request_first:
            raw.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file], flags=9)
        frontend.share_memory(1 << 20)
        assert statuses == [0]
        assert len(frontend.shm[0].mappings) == 1


def test_w42_an_answer_that_never_comes_is_waited_for_until_the_deadline() -> None:
    with mapping(reply_timeout=0.3) as (raw, channel, device, waits):
        raw.alive()
        with pytest.raises(DeadlineExpired, match=r"SHMEM_MAP was not answered within 0\.3 s"):
            waits.result(WATCHDOG)
        channel.closes()
        raw.alive()
        assert not device.shm[0].mappings
        with sparse_file(PAGE) as file, pytest.raises(Disconnected, match="not answered"):
            device.shm[0].map(file, shm_offset=0, len=PAGE)
        again = raw.open_requests()
        with sparse_file(PAGE) as file, ThreadPoolExecutor(1) as pool:
            done = pool.submit(device.shm[0].map, file, shm_offset=0, len=PAGE)
            close_all(again.receive().fds)
            answer(again, B.SHMEM_MAP)
            done.result(WATCHDOG)


def test_w42_a_reply_that_never_comes_is_waited_for_until_the_deadline() -> None:
    with RawBackend() as raw, raw.frontend(reply_timeout=0.3) as frontend, sparse_file(PAGE) as file:
        raw.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
        raw.raw_answers[Q.SET_MEM_TABLE] = b""
        with pytest.raises(DeadlineExpired, match=r"SET_MEM_TABLE was not answered within 0\.3 s"):
            frontend.share_memory(1 << 20)
        assert not frontend.shm[0].mappings
        with pytest.raises(Disconnected, match="the connection is over"):
            frontend.reset()


def test_w47_the_front_end_goes_while_the_map_waits() -> None:
    with mapping() as (raw, _, device, waits):
        raw.close()
        with pytest.raises(Disconnected):
            waits.result(WATCHDOG)
        raw.served.join(WATCHDOG)
        assert raw.served.error is None
        assert not device.shm[0].mappings


def test_w47_the_channel_goes_while_the_map_waits() -> None:
    with mapping() as (raw, channel, _, waits):
        channel.close()
        with pytest.raises(Disconnected):
            waits.result(WATCHDOG)
        raw.alive()


@pytest.mark.parametrize("main", [True, False], ids=["main-channel", "back-end-channel"])
def test_w47_the_back_end_goes_before_it_is_answered(main: bool) -> None:
    with RawBackend() as raw, raw.frontend() as frontend, sparse_file(PAGE) as file:
        raw.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
        channel, channel.pump = raw.channel, None
        channel.request(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE), flags=9)
        channel.request(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE), flags=9)
        channel.close()
        if main:
            raw.main.end()
            with pytest.raises(Disconnected):
                frontend.serve(WATCHDOG)
        else:
            frontend.serve(0.1)
            assert frontend.config(0, 4) == bytes(4)
        assert not frontend.shm[0].mappings


SIGPIPE = """
import signal, socket, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from vhostuser import Backend, Device, Disconnected, Frontend
from vhostuser.testing.files import message
from vhostuser.protocol.payloads import U64
ours, theirs = socket.socketpair()
ours.sendall(message(1) * 200)
ours.close()
class Plain(Device):
    queue_sizes = (16,)
Backend(Plain()).serve_fd(theirs.detach())
ours, theirs = socket.socketpair()
theirs.close()
try:
    Frontend(ours)
except Disconnected:
    print("lives")
"""


def test_w47_no_sigpipe_even_if_it_would_kill() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SIGPIPE],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr
    assert done.returncode != -signal.SIGPIPE
