"""The back-end's half of "In-band notifications": kicks that come as messages, calls and errors that leave as such."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from vhostuser import MapRequest, QueueBroken, RemoteProtocolError, _native
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, mask
from vhostuser.protocol.numbers import BackendRequest as B
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import U64, VringAddr, VringState
from vhostuser.testing import DEADLINE, ServedRawFrontend, Wire, joined, raw_frontend, sparse_file, wait_until
from vhostuser.testing.files import message
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES

from .devices import Scripted

if TYPE_CHECKING:
    from vhostuser._native.handover import Handover
    from vhostuser._native.walk import DeviceRing

PAGE = 4096
NO_FD = 1 << 8
ACK = 5
INBAND = PROTOCOL_FEATURES | mask((F.INBAND_NOTIFICATIONS,))
RING = VringAddr(0, 0, 0, 0x200, 0x100, 0)
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def patient() -> Scripted:
    """A device for which a stop, or the answer to a kick, would wait longer than any test."""
    device = Scripted()
    device.drain_timeout = 1e4
    return device


@formats
def test_both_sides_without_an_eventfd(packed: bool) -> None:
    seen: list[bytes] = []

    def note(device: Scripted, request: bytes) -> bytes:
        seen.append(request)
        return request

    device = patient()
    device.work = note
    with joined(device, packed=packed, inband=True) as (frontend, served):
        assert "INBAND_NOTIFICATIONS" in frontend.protocol_features
        frontend.share_memory(1 << 20)
        for _ in range(2):
            queue, other = frontend.start_queue(0, size=16), frontend.start_queue(1, size=16)
            for number in range(40):
                request = number.to_bytes(4, "little")
                assert (queue if number % 2 else other).exchange(request, 4) == request
            seen.clear()
            tickets = [queue.submit([bytes([each])], [1]) for each in range(5)]
            queue.notify()
            assert seen == [bytes([each]) for each in range(5)], "a kick is acknowledged once all is processed"
            assert [queue.finish(ticket).data for ticket in tickets] == seen
            frontend.stop_queue(0)
            frontend.stop_queue(1)
        frontend.reset()
        assert frontend.start_queue(0, size=8).exchange(b"ping", 4) == b"ping"
        assert served.backend.counters.refused == 0
    assert served.error is None


@formats
def test_a_device_maps_while_its_kick_is_not_acknowledged_yet(packed: bool) -> None:
    device = patient()
    with joined(device, packed=packed, inband=True) as (frontend, _), sparse_file(PAGE) as file:
        device.work = lambda device, request: str(device.shm[0].map_many([MapRequest(file, 0, PAGE)])).encode()
        frontend.share_memory(1 << 20)
        assert frontend.start_queue(0, size=16).exchange(b"map", 16) == b"[None]"


@formats
def test_a_broken_ring_is_said_to_be_so_by_message(packed: bool) -> None:
    with joined(patient(), packed=packed, inband=True) as (frontend, served):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        assert queue.exchange(b"ping", 4) == b"ping"
        ticket = queue.submit([b"x"], [1])
        descriptors = queue._parts[0].cast("Q")
        for at in range(0, 32, 2):
            descriptors[at] = 1 << 60
        with pytest.raises(QueueBroken, match="the back-end declares it broken"):
            queue.finish(ticket)
        assert served.backend.counters.broken == 1
        frontend.stop_queue(0)
        assert frontend.start_queue(0, size=16).exchange(b"pong", 4) == b"pong"


# A front-end by hand


class Hand:
    """A ring in-band with one request that is offered again and again; `channel` is the back-end's."""

    def __init__(self, raw: ServedRawFrontend) -> None:
        self.raw = raw
        raw.negotiate(protocol=INBAND)
        self.channel = raw.open_requests()
        self.memory = map_file(raw.share_memory().fileno(), 1 << 20, 0)
        self.memory[:16] = (0x8000).to_bytes(8, "little") + bytes([4, 0, 0, 0, 2, 0, 0, 0])
        self.start()

    def start(self) -> None:
        self.raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
        self.raw.accepted(Q.SET_VRING_ADDR, RING)
        self.raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))

    def offer(self) -> None:
        """One more request, its kick, and its acknowledgement."""
        self.memory[0x102] += 1
        self.raw.accepted(Q.VRING_KICK, VringState(0, 0))
        assert self.memory[0x202] == self.memory[0x102], "it is done and shown"

    def heard(self, channel: Wire, request: B = B.VRING_CALL) -> None:
        """The back-end's message, which is left without an answer."""
        frame = channel.receive()
        assert (frame.request, frame.flags) == (request, VERSION | NEED_REPLY)
        assert VringState.unpack(frame.payload) == VringState(0, 0)


@contextmanager
def by_hand(device: Scripted | None = None) -> Iterator[Hand]:
    with raw_frontend(device or patient()) as raw:
        hand = Hand(raw)
        try:
            yield hand
        finally:
            hand.memory.release()
            del hand.memory


def answer(channel: Wire, request: B = B.VRING_CALL, status: int = 0) -> None:
    channel.request(request, U64(status), flags=ACK)


@pytest.mark.parametrize("status", [0, 1])
def test_nothing_waits_for_the_answer_to_a_call(status: int) -> None:
    """Neither the next kick nor a stop; what was done meanwhile is called once."""
    with by_hand() as hand:
        hand.offer()
        hand.heard(hand.channel)
        hand.offer()
        hand.offer()
        assert VringState.unpack(hand.raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 3
        hand.start()
        hand.offer()
        answer(hand.channel, status=status)
        hand.heard(hand.channel)
        answer(hand.channel, status=status)
        hand.offer()
        hand.heard(hand.channel)
        answer(hand.channel, status=status)
        hand.raw.alive()


def test_a_call_goes_to_the_channel_that_is_given_while_it_waits() -> None:
    with by_hand() as hand:
        hand.offer()
        hand.heard(hand.channel)
        again = hand.raw.open_requests()
        hand.heard(again)
        answer(again)
        hand.offer()
        hand.heard(again)
        answer(again)
        hand.raw.alive()


@pytest.mark.parametrize("end", ["closed", "nonsense"])
def test_a_channel_that_is_lost_ends_the_connection(end: str) -> None:
    with by_hand() as hand:
        hand.offer()
        hand.heard(hand.channel)
        hand.channel.close() if end == "closed" else hand.channel.request(B.VRING_ERR, U64(0), flags=ACK)
        hand.raw.closes()
        hand.raw.served.join()
        assert isinstance(hand.raw.served.error, RemoteProtocolError)
        assert "a notification in-band was lost" in str(hand.raw.served.error)


def test_no_answer_to_a_call_ends_the_connection() -> None:
    with raw_frontend(patient(), reply_timeout=0.05) as raw:
        hand = Hand(raw)
        hand.memory[0x102] += 1
        raw.request(Q.VRING_KICK, VringState(0, 0))
        raw.closes()
        hand.memory.release()
        raw.served.join()
        assert "a notification in-band was lost: no message within 0.05 s" in str(raw.served.error)


def test_an_eventfd_is_preferred_and_who_polls_is_not_called() -> None:
    with by_hand() as hand:
        call = hand.raw.eventfd()
        hand.raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
        hand.offer()
        hand.raw.accepted(Q.SET_VRING_CALL, U64(NO_FD))
        hand.offer()
        hand.memory[:8] = b"\xff" * 8
        hand.memory[0x102] += 1
        hand.raw.accepted(Q.VRING_KICK, VringState(0, 0))
        hand.heard(hand.channel, B.VRING_ERR)
        answer(hand.channel, B.VRING_ERR)
        hand.raw.alive()


def test_who_gave_no_channel_is_not_called_and_lives_as_qemu_does() -> None:
    """It acknowledges the feature without knowing it, and has eventfds."""
    with raw_frontend(patient()) as raw:
        raw.negotiate(protocol=INBAND)
        memory = raw.share_memory()
        os.pwrite(memory.fileno(), b"\xff\x7f", 16 * 16 + 2)
        raw.accepted(Q.SET_VRING_NUM, VringState(0, 16))
        raw.accepted(Q.SET_VRING_ADDR, RING)
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
        wait_until(lambda: raw.served.backend.counters.broken == 1, "the queue is broken")
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        raw.alive()


@pytest.mark.parametrize("lacking", [F.BACKEND_REQ, F.REPLY_ACK])
def test_without_what_it_needs_the_connection_ends(lacking: F) -> None:
    with raw_frontend(Scripted()) as raw:
        offered = raw.value(Q.GET_PROTOCOL_FEATURES)
        assert offered >> F.INBAND_NOTIFICATIONS & 1
        features = mask((F.INBAND_NOTIFICATIONS, F.BACKEND_REQ, F.REPLY_ACK)) & ~mask((lacking,))
        raw.closes(message(Q.SET_PROTOCOL_FEATURES, U64(features)))
        raw.served.join()
        assert f"has INBAND_NOTIFICATIONS without what it requires, {lacking.name}" in str(raw.served.error)


def test_a_kick_is_refused_that_was_not_negotiated_or_has_no_ring() -> None:
    with raw_frontend(Scripted()) as raw:
        raw.negotiate()
        raw.refused(Q.VRING_KICK, VringState(0, 0))
    with by_hand() as hand:
        hand.raw.refused(Q.VRING_KICK, VringState(2, 0))
        hand.offer()
        hand.heard(hand.channel)
        answer(hand.channel)


class Noted(Scripted):
    """Says whether compiled code may serve it."""

    def __init__(self) -> None:
        super().__init__()
        self.drain_timeout = 1e4
        self.serves = threading.Event()

    def compiled(self) -> Noted:
        return self

    def serve(self, ring: DeviceRing, handover: Handover, epoch: int, kick: int, waker: int, spin: int) -> int:
        """As CompiledHandler: wait for a request, and leave it to Python."""
        self.serves.set()
        why = handover.wait(ring, epoch, kick, waker, spin)
        return _native.handover.LEFT if why == _native.handover.WORK else why


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled here")
def test_compiled_code_serves_a_ring_as_soon_as_its_driver_is_called_by_eventfd() -> None:
    """QEMU acknowledges INBAND_NOTIFICATIONS, and gives eventfds."""
    device = Noted()
    with by_hand(device) as hand:
        hand.raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[hand.raw.eventfd()])
        hand.offer()
        hand.heard(hand.channel)
        answer(hand.channel)
        assert not device.serves.is_set(), "it would not call the driver"
        call = hand.raw.eventfd()
        hand.raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
        assert device.serves.wait(DEADLINE)
        hand.offer()
        assert os.eventfd_read(call.fileno())
