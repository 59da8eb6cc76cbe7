"""Our front-end against virtiofsd, a back-end of the rust-vmm crates."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

import pytest

from vhostuser import Frontend, Queue
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import VringState
from vhostuser.testing import DEADLINE, RawFrontend, message
from vhostuser.transport.listen import connect
from vhostuser.virtio.buffers import Buffer

from .peers import Process, virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

IN_HEADER = Struct("<IIQQIIIHH")
OUT_HEADER = Struct("<IiQ")
INIT_IN, INIT_OUT = Struct("<IIIII44x"), Struct("<II56x")
OPEN_IN, OPEN_OUT = Struct("<II"), Struct("<QII")
READ_IN = Struct("<QQIIQII")
ENTRY_OUT = Struct("<Q120x")
LOOKUP, OPEN, READ, INIT = 1, 14, 15, 26
ROOT = 1
ENOENT = 2


class Fuse:
    """The little of FUSE that proves that requests and data go both ways."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.unique = queue, 0

    def call(self, opcode: int, node: int, body: bytes, room: int) -> tuple[int, bytes]:
        """Send one request: the error, and what else came."""
        self.unique += 2
        header = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, self.unique, node, 0, 0, 1, 0, 0)
        reply = self.queue.exchange(header + body, OUT_HEADER.size + room, timeout=DEADLINE)
        size, error, unique = OUT_HEADER.unpack(reply[: OUT_HEADER.size])
        assert (size, unique) == (len(reply), self.unique)
        return -error, reply[OUT_HEADER.size :]

    def init(self) -> tuple[int, int]:
        """The version that it speaks."""
        error, reply = self.call(INIT, 0, INIT_IN.pack(7, 38, 1 << 17, 0, 0), INIT_OUT.size)
        assert (error, len(reply)) == (0, INIT_OUT.size)
        major, minor = INIT_OUT.unpack(reply)
        return major, minor

    def lookup(self, name: bytes) -> tuple[int, int]:
        """The error, and the node of a file in the root."""
        error, reply = self.call(LOOKUP, ROOT, name + b"\0", ENTRY_OUT.size)
        return error, 0 if error else ENTRY_OUT.unpack(reply)[0]

    def contents(self, node: int, size: int) -> bytes:
        """The first `size` bytes of a file."""
        error, reply = self.call(OPEN, node, OPEN_IN.pack(0, 0), OPEN_OUT.size)
        assert error == 0
        handle, _, _ = OPEN_OUT.unpack(reply)
        error, data = self.call(READ, node, READ_IN.pack(handle, 0, size, 0, 0, 0, 0), size)
        assert error == 0
        return data


@pytest.fixture
def shared(place: Path) -> Path:
    """A directory with one file."""
    folder = place / "shared"
    folder.mkdir()
    (folder / "hello").write_bytes(b"how do you do?" * 5000)
    return folder


@contextmanager
def connected(shared: Path) -> Iterator[tuple[Frontend, Process]]:
    path = shared.with_name("s")
    with virtiofsd(shared, path) as process, Frontend.connect(path, reply_timeout=DEADLINE) as frontend:
        yield frontend, process


def test_negotiation(shared: Path) -> None:
    with connected(shared) as (frontend, process):
        assert {"VERSION_1", "PROTOCOL_FEATURES"} <= frontend.features
        assert {"MQ", "REPLY_ACK", "BACKEND_REQ"} <= frontend.protocol_features
        assert "SHMEM" not in frontend.protocol_features
        assert (frontend.shm, frontend.diagnosis) == ({}, None)
        assert frontend.queue_count >= 2
        frontend.close()
        assert process.wait(DEADLINE) == 0


def test_a_file_comes_through_its_request_queue(shared: Path) -> None:
    content = (shared / "hello").read_bytes()
    with connected(shared) as (frontend, process):
        frontend.share_memory(4 << 20)
        frontend.start_queue(0, size=128)
        fuse = Fuse(frontend.start_queue(1, size=128))
        major, minor = fuse.init()
        assert major == 7
        assert minor >= 27
        assert fuse.lookup(b"nobody") == (ENOENT, 0)
        error, node = fuse.lookup(b"hello")
        assert error == 0
        assert fuse.contents(node, len(content)) == content
        for index in (1, 0):
            frontend.stop_queue(index)
        frontend.close()
        assert process.wait(DEADLINE) == 0


def test_rings_stop_and_start_again_in_between(shared: Path) -> None:
    with connected(shared) as (frontend, _):
        frontend.share_memory(4 << 20)
        fuse = Fuse(frontend.start_queue(1, size=128))
        fuse.init()
        for _ in range(20):
            frontend.stop_queue(1)
            fuse.queue = frontend.start_queue(1, size=64)
            assert fuse.lookup(b"hello")[0] == 0


def test_many_requests_in_flight(shared: Path) -> None:
    with connected(shared) as (frontend, _):
        frontend.share_memory(4 << 20)
        queue = frontend.start_queue(1, size=128)
        fuse = Fuse(queue)
        fuse.init()
        body = b"hello\0"
        asked = {}
        for unique in range(100, 164, 2):
            header = IN_HEADER.pack(IN_HEADER.size + len(body), LOOKUP, unique, ROOT, 0, 0, 1, 0, 0)
            asked[queue.submit([header, body], [OUT_HEADER.size, ENTRY_OUT.size])] = unique
        while queue.in_flight:
            for done in queue.completions(DEADLINE):
                assert OUT_HEADER.unpack(done.buffers[0]) == (OUT_HEADER.size + ENTRY_OUT.size, 0, asked.pop(done.ticket))
        assert asked == {}


def test_memory_is_added_and_removed_while_the_queue_runs(shared: Path) -> None:
    """Requests and answers lie in what was added; the daemon has no other way to them."""
    with connected(shared) as (frontend, process):
        assert "CONFIGURE_MEM_SLOTS" in frontend.protocol_features
        frontend.share_memory(4 << 20)
        fuse = Fuse(queue := frontend.start_queue(1, size=128))
        fuse.init()
        for unique in range(100, 110):
            asked, answered = frontend.add_memory(1 << 20), frontend.add_memory(1 << 16)
            request = IN_HEADER.pack(IN_HEADER.size + 6, LOOKUP, unique, ROOT, 0, 0, 1, 0, 0) + b"hello\0"
            asked.view[-len(request) :] = request
            at = asked.guest_addr + len(asked.view) - len(request)
            place_and_wait(queue, [(at, len(request))], [(answered.guest_addr, OUT_HEADER.size + ENTRY_OUT.size)])
            size, error, echoed = OUT_HEADER.unpack(answered.view[: OUT_HEADER.size])
            assert (size, error, echoed) == (OUT_HEADER.size + ENTRY_OUT.size, 0, unique)
            frontend.remove_memory(asked)
            frontend.remove_memory(answered)
        assert fuse.lookup(b"hello")[0] == 0
        assert process.poll() is None


def place_and_wait(queue: Queue, readable: list[Buffer], writable: list[Buffer]) -> None:
    """Send one request with buffers of one's own, and wait for the end of it."""
    ring = queue._ring
    assert ring is not None
    ring.add(readable, writable)
    os.eventfd_write(queue.kick.fileno(), 1)
    while ring.collect() is None:
        assert select.select([queue.call.fileno()], [], [], DEADLINE)[0]
        os.eventfd_read(queue.call.fileno())


def test_after_a_reset_the_features_are_acknowledged_again(shared: Path) -> None:
    """It forgets them with RESET_DEVICE, and would refuse to enable a ring."""
    with connected(shared) as (frontend, _):
        assert "RESET_DEVICE" in frontend.protocol_features
        frontend.share_memory(4 << 20)
        for _ in range(3):
            fuse = Fuse(frontend.start_queue(1, size=128))
            fuse.init()
            assert fuse.lookup(b"hello")[0] == 0
            frontend.reset()


def test_it_ends_when_a_request_is_not_to_its_liking(shared: Path) -> None:
    """It has no ring 200: it exits, with 0."""
    with virtiofsd(shared, path := shared.with_name("s")) as process, RawFrontend(connect(path)) as raw:
        raw.negotiate()
        raw.send(message(FrontendRequest.SET_VRING_NUM, VringState(200, 128)))
        assert process.wait(DEADLINE) == 0
