"""Our front-end against vhost-device-vsock, a back-end of the rust-vmm crates: sockets of a guest that we play.

A guest that connects to a port where nobody listens gets no answer at all from version 0.3.0, so that is not tried here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import pytest

from vhostuser import Frontend, LocalProtocolError
from vhostuser.testing import DEADLINE
from vhostuser.transport.listen import connect, listen

from .peers import Process, vhost_device_vsock

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

HEADER: Final = Struct("<QQIIIHHIII")
HOST, GUEST = 2, 3
OUR_PORT, THEIR_PORT = 1000, 1234
STREAM: Final = 1
REQUEST, RESPONSE, SHUTDOWN, RW = 1, 2, 4, 5
RX, TX, EVENT = 0, 1, 2
ROOM: Final = 4096
CREDIT: Final = 1 << 16


class Packet(NamedTuple):
    """What came for the guest."""

    op: int
    src_port: int
    dst_port: int
    data: bytes


class Sockets:
    """The guest's driver of the three queues, with a few buffers for what comes."""

    def __init__(self, frontend: Frontend, *, size: int = 64) -> None:
        self.rx, self.tx, self.event = (frontend.start_queue(index, size=size) for index in (RX, TX, EVENT))
        self._came: list[Packet] = []
        self.sent = self.received = 0
        self.give(8)

    def give(self, count: int) -> None:
        """Offer buffers for packets that come."""
        for _ in range(count):
            self.rx.submit([], [HEADER.size, ROOM])
        self.rx.notify()

    def send(self, op: int, data: bytes = b"", *, src: int = OUR_PORT, dst: int = THEIR_PORT, flags: int = 0) -> None:
        """Send one packet to the host; the device has taken it when this returns."""
        header = HEADER.pack(GUEST, HOST, src, dst, len(data), STREAM, op, flags, CREDIT, 0)
        self.tx.finish(self.tx.submit([header, *([data] if data else [])]), timeout=DEADLINE)
        self.sent += 1

    def receive(self) -> Packet:
        """The next packet, which is from the host to the guest and as long as it says."""
        while not self._came:
            done = self.rx.completions(DEADLINE)
            self._came += [_packet(each.data) for each in done]
            self.received += len(done)
            self.give(len(done))
        return self._came.pop(0)


def _packet(data: bytes) -> Packet:
    src_cid, dst_cid, src, dst, size, kind, op, *_ = HEADER.unpack(data[: HEADER.size])
    assert (src_cid, dst_cid, kind, size) == (HOST, GUEST, STREAM, len(data) - HEADER.size)
    return Packet(op, src, dst, data[HEADER.size :])


@contextmanager
def connected(place: Path) -> Iterator[tuple[Frontend, Process]]:
    """The daemon and a front-end of it with memory."""
    path = place / "s"
    daemon = vhost_device_vsock(path, place / "host", cid=GUEST)
    with daemon as process, Frontend.connect(path, reply_timeout=DEADLINE) as frontend:
        frontend.share_memory(1 << 20)
        yield frontend, process


@contextmanager
def accepted(guest: Sockets, place: Path) -> Iterator[socket.socket]:
    """The host's end of a connection that the guest has made."""
    with listen(f"{place / 'host'}_{THEIR_PORT}") as listener:
        listener.settimeout(DEADLINE)
        guest.send(REQUEST)
        assert guest.receive() == (RESPONSE, THEIR_PORT, OUR_PORT, b"")
        host, _ = listener.accept()
    with host:
        host.settimeout(DEADLINE)
        yield host


def talk(guest: Sockets, host: socket.socket, words: bytes) -> None:
    """Bytes go from the guest to the host and come back."""
    guest.send(RW, words)
    assert host.recv(len(words), socket.MSG_WAITALL) == words
    host.sendall(words[::-1])
    back = b""
    while len(back) < len(words):
        packet = guest.receive()
        assert packet[:3] == (RW, THEIR_PORT, OUR_PORT)
        back += packet.data
    assert back == words[::-1]


def test_negotiation(place: Path) -> None:
    with connected(place) as (frontend, process):
        assert {"VERSION_1", "PROTOCOL_FEATURES"} <= frontend.features
        assert {"MQ", "REPLY_ACK", "CONFIG"} <= frontend.protocol_features
        assert (frontend.shm, frontend.diagnosis, frontend.queue_count) == ({}, None, 3)
        assert int.from_bytes(frontend.config(0, 8), "little") == GUEST
        assert process.poll() is None


def test_memory_slots_that_it_does_not_offer_are_not_asked_for(place: Path) -> None:
    with connected(place) as (frontend, _):
        with pytest.raises(LocalProtocolError, match="CONFIGURE_MEM_SLOTS"):
            frontend.add_memory(1 << 20)
        Sockets(frontend)


@pytest.mark.parametrize("size", [1, 100, ROOM, 3 * ROOM])
def test_what_the_guest_says_comes_out_at_the_host_and_back(place: Path, size: int) -> None:
    with connected(place) as (frontend, _):
        guest = Sockets(frontend)
        with accepted(guest, place) as host:
            talk(guest, host, bytes(index % 251 for index in range(size)))
            host.close()
            assert guest.receive() == (SHUTDOWN, THEIR_PORT, OUR_PORT, b"")


def test_the_host_connects_to_the_guest(place: Path) -> None:
    with connected(place) as (frontend, _):
        guest = Sockets(frontend)  # before the host comes: it forgets those who come earlier
        with connect(place / "host") as host:
            host.settimeout(DEADLINE)
            host.sendall(b"connect 77\n")
            asked = guest.receive()
            assert (asked.op, asked.dst_port) == (REQUEST, 77)
            guest.send(RESPONSE, src=77, dst=asked.src_port)
            assert host.recv(64) == b"OK 77\n"
            guest.send(RW, b"welcome", src=77, dst=asked.src_port)
            assert host.recv(64) == b"welcome"


def test_rings_stop_where_they_are_and_may_be_started_again(place: Path) -> None:
    """No more: vhost-device-vsock 0.3 does not always wait for the new kick of a ring that it has run before."""
    with connected(place) as (frontend, process):
        guest = Sockets(frontend)
        with accepted(guest, place) as host:
            talk(guest, host, b"before the stop")
            assert frontend.stop_queue(TX) == guest.sent
            assert frontend.stop_queue(RX) == guest.received
            frontend.stop_queue(EVENT)
            Sockets(frontend, size=32)
        assert process.poll() is None
