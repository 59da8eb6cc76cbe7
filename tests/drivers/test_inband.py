"""Kicks, calls and errors as messages ("In-band notifications"), with a raw back-end whose device half is in its thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostuser import Frontend, Queue, QueueBroken, RequestFailed
from vhostuser.errors import DeadlineExpired
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import BackendRequest as B
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import VringState
from vhostuser.testing import DEADLINE, RawBackend, message, wait_until
from vhostuser.testing.raw_backend import FEATURES, PROTOCOL_FEATURES
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.formats import DeviceQueue
from vhostuser.virtio.numbers import Feature

from .test_reconnect import answer_all, device_half, submit

INBAND = PROTOCOL_FEATURES | 1 << F.INBAND_NOTIFICATIONS
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Answering(RawBackend):
    """Answers whatever there is at each VRING_KICK, before it acknowledges it, and says so by `tells`, if at all."""

    def __init__(self, protocol_features: int = INBAND) -> None:
        super().__init__(features=FEATURES | 1 << Feature.RING_PACKED, protocol_features=protocol_features, queues=2)
        self.half: DeviceQueue | None = None
        self.tells: B | None = B.VRING_CALL
        self.kicks: list[VringState] = []
        self.raw_answers[Q.VRING_KICK] = self._kicked

    def _kicked(self, frame: Frame[OwnedFd]) -> bytes:
        self.kicks.append(VringState.unpack(frame.payload))
        if self.half and answer_all(self.half) and self.tells:
            self.channel.accepted(self.tells, VringState(0, 0))
        return message(frame.request, bytes(8), flags=ACK)


@contextmanager
def begun(packed: bool = False) -> Iterator[tuple[Answering, Frontend, Queue]]:
    with Answering() as raw, raw.frontend(packed=packed, inband=True) as frontend:
        raw.channel.pump = None  # its own thread asks, while the front-end waits
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        raw.half = device_half(queue, packed)
        yield raw, frontend, queue


@formats
def test_kicks_and_calls_are_messages_and_there_are_no_eventfds(packed: bool) -> None:
    with begun(packed) as (raw, frontend, queue):
        assert "INBAND_NOTIFICATIONS" in frontend.protocol_features
        assert not {Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR} & set(raw.seen)
        assert raw.seen[-2:] == [Q.SET_VRING_ENABLE, Q.VRING_KICK]
        for _ in range(20):
            assert queue.exchange(b"ping", 4, timeout=DEADLINE) == b"ping"
        wanted = submit(queue, 5)
        assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted
        assert raw.kicks == [VringState(0, 0)] * 22  # one to start, and one a batch


def test_an_error_is_a_message_too_and_concerns_its_queue_alone() -> None:
    with begun() as (raw, frontend, queue):
        frontend.start_queue(1, size=16)
        raw.half, raw.tells = None, None
        queue.submit([b"x"], [1])
        with pytest.raises(DeadlineExpired):
            queue.completions(0)
        raw.channel.request(B.VRING_ERR, VringState(1, 0))
        raw.channel.request(B.VRING_CALL, VringState(0, 0))
        with pytest.raises(DeadlineExpired):
            queue.completions(0)
        raw.channel.request(B.VRING_ERR, VringState(0, 0))
        with pytest.raises(QueueBroken, match="queue 0: the back-end declares it broken"):
            queue.completions(DEADLINE)


def test_a_queue_is_stopped_and_started_again_and_late_calls_are_taken() -> None:
    with begun() as (raw, frontend, queue):
        assert queue.exchange(b"ping", 4, timeout=DEADLINE) == b"ping"
        frontend.stop_queue(0)
        raw.channel.pump = lambda: frontend.serve(0)
        raw.channel.accepted(B.VRING_CALL, VringState(0, 0))
        raw.channel.refused(B.VRING_CALL, VringState(2, 0))
        raw.channel.pump = None
        again = frontend.start_queue(0, size=8)
        raw.half = device_half(again, False)
        assert again.exchange(b"pong", 4, timeout=DEADLINE) == b"pong"


def test_another_back_end_is_kicked_once_as_it_is_started() -> None:
    with begun() as (first, frontend, queue):
        first.half = None
        wanted = submit(queue, 3)
        queue.notify()
        first.main.end()
        with Answering() as raw:
            raw.take_over(frontend, resubmit=True)
            raw.channel.pump = None
            assert len(raw.kicks) == 1
            raw.half = device_half(queue, False)
            frontend.request(Q.VRING_KICK, VringState(0, 0))
            assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted


def test_a_kick_that_was_refused_is_sent_again_at_the_next_wait() -> None:
    with begun() as (raw, _, queue):
        wanted = submit(queue, 1)
        raw.raw_answers[Q.VRING_KICK] = message(Q.VRING_KICK, (1).to_bytes(8, "little"), flags=ACK)
        for _ in range(2):
            with pytest.raises(RequestFailed, match="VRING_KICK"):
                queue.notify()
        raw.raw_answers[Q.VRING_KICK] = raw._kicked
        assert {each.ticket: each.data for each in queue.completions(DEADLINE)} == wanted
        assert len(raw.kicks) == 2  # one to start


@pytest.mark.parametrize(
    ("inband", "offered"), [(False, INBAND), (True, PROTOCOL_FEATURES), (True, INBAND & ~(1 << F.REPLY_ACK))]
)
def test_eventfds_stay_where_messages_are_not_asked_for_or_not_to_be_had(inband: bool, offered: int) -> None:
    with Answering(offered) as raw, raw.frontend(inband=inband) as frontend:
        assert "INBAND_NOTIFICATIONS" not in frontend.protocol_features
        frontend.share_memory(1 << 20)
        frontend.start_queue(0, size=16).notify()
        wait_until(lambda: Q.SET_VRING_ENABLE in raw.seen, "all that was sent is seen")
        assert Q.SET_VRING_KICK in raw.seen
        assert Q.VRING_KICK not in raw.seen
