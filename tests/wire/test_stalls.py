"""W40: who stops in the middle of a message is given up, and holds up nobody else."""

from __future__ import annotations

import inspect
import socket

import pytest

from tests.aio.loops import both, run, serving
from tests.aio.test_backend import Scripted as AsyncScripted
from vhostuser import Backend, DeadlineExpired, Disconnected, Frontend
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import DEADLINE, RawBackend, listening, message
from vhostuser.transport.channel import PARTIAL_TIMEOUT

from .devices import Scripted

Q = FrontendRequest
NUM = message(Q.SET_VRING_NUM, VringState(0, 16))


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_w40_half_a_reply_ends_the_connection(size: int) -> None:
    with RawBackend() as raw, raw.frontend(partial_timeout=0.1) as frontend:
        raw.raw_answers[Q.GET_STATUS] = message(Q.GET_STATUS, U64(0), flags=5)[:size]
        with pytest.raises(DeadlineExpired, match=r"not complete within 0\.1 s"):
            frontend.request(Q.GET_STATUS)
        with pytest.raises(Disconnected):
            frontend.request(Q.GET_STATUS)


@pytest.mark.parametrize("side", [Backend, Frontend], ids=lambda side: side.__name__)
def test_w40_the_deadline_is_five_seconds(side: type[Backend] | type[Frontend]) -> None:
    assert inspect.signature(side).parameters["partial_timeout"].default == PARTIAL_TIMEOUT == 5


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_w40_the_next_front_end_is_served_after_a_slow_one(size: int) -> None:
    with listening(Scripted(), partial_timeout=0.1) as (path, served), socket.socket(socket.AF_UNIX) as slow:
        slow.connect(path)
        slow.sendall(NUM[:size])
        with Frontend.connect(path, wait=DEADLINE) as frontend:
            frontend.share_memory(1 << 20)
            assert frontend.start_queue(0, size=16).exchange(b"ping", 4) == b"ping"
            assert slow.recv(1) == b""
        assert served.backend.counters.closed >= 1


def test_w40_a_slow_front_end_holds_up_no_other_device_of_its_loop() -> None:
    """Its deadline is far away when the other one is done."""

    async def work() -> None:
        async with serving(AsyncScripted()) as (slow, _):
            slow.sendall(NUM[:13])
            async with both(AsyncScripted()) as frontend:
                queue = await frontend.start_queue(0, size=16)
                for number in range(200):
                    assert await queue.exchange(number.to_bytes(4, "little"), 4) == number.to_bytes(4, "little")
            slow.setblocking(False)
            with pytest.raises(BlockingIOError):
                slow.recv(1)

    run(work())
