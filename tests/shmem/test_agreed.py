"""What a device may send depends on what was agreed, and an answer belongs to the channel that it came on."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.wire.devices import Scripted
from vhostuser import DeadlineExpired, Disconnected, LocalProtocolError, MapRequest, RequestFailed, VhostUserError
from vhostuser.protocol.numbers import BackendRequest, ProtocolFeature
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import ServedRawFrontend, Wire, memory_file, message, raw_frontend, sparse_file
from vhostuser.testing.raw_frontend import MEMORY, PROTOCOL_FEATURES
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd, close_all

from .conftest import PAGE


def start_silently(raw: ServedRawFrontend, memory: OwnedFd) -> Wire:
    """Start queue 0 with no acknowledgement asked for; the back-end channel."""
    ours, theirs = socket.socketpair()
    with theirs:
        raw.request(Q.SET_BACKEND_REQ_FD, fds=[theirs])
    raw.requests = Wire(ours)
    raw.request(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, MEMORY, 0, 0)]), fds=[memory])
    raw.request(Q.SET_VRING_NUM, VringState(0, 16))
    raw.request(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 1024, 512, 0))
    raw.request(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
    raw.request(Q.SET_VRING_ENABLE, VringState(0, 1))
    raw.alive()
    return raw.requests


class Asking(threading.Thread):
    """A thread of the device that asks for something; `error` is what it got."""

    def __init__(self, work: object, *args: object, **names: object) -> None:
        super().__init__(daemon=True)
        self.error: VhostUserError | None = None
        self._work, self._args, self._names = work, args, names

    def run(self) -> None:
        try:
            self._work(*self._args, **self._names)  # type: ignore[operator]  # a bound method of SharedMemory
        except VhostUserError as error:
            self.error = error.with_traceback(None)


def take(channel: Wire, count: int = 1) -> None:
    """Receive requests of the device, and answer none."""
    for _ in range(count):
        close_all(channel.receive().fds)


def say(channel: Wire, request: int, status: int = 0, count: int = 1) -> None:
    channel.send(message(request, U64(status), flags=ACK) * count)


@pytest.mark.parametrize("lacking", [ProtocolFeature.SHMEM, ProtocolFeature.REPLY_ACK], ids=lambda feature: feature.name)
def test_sh01_nothing_is_sent_that_was_not_agreed(lacking: ProtocolFeature) -> None:
    device = Scripted()
    with raw_frontend(device, reply_timeout=0.2) as raw, memory_file() as file, sparse_file(MEMORY) as memory:
        raw.negotiate(protocol=PROTOCOL_FEATURES & ~(1 << lacking))
        channel = start_silently(raw, memory)
        assert device.ready.wait(10)
        with pytest.raises(LocalProtocolError, match=lacking.name):
            device.shm[0].map(file, shm_offset=0, len=PAGE)
        channel.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            channel.socket.recv(1)


def test_sh37_a_reset_between_an_unmap_and_its_answer_gives_the_quota_back() -> None:
    device, pages = Scripted(), 8
    with raw_frontend(device) as raw, memory_file(pages) as file:
        channel = raw.start()
        assert device.ready.wait(10)
        region = device.shm[0]
        mapping = Asking(region.map_many, [MapRequest(file, page * PAGE, PAGE) for page in range(pages)])
        mapping.start()
        take(channel, pages)
        say(channel, BackendRequest.SHMEM_MAP, count=pages)
        mapping.join()
        assert region._quota.used == pages
        unmapping = Asking(region.unmap_many, [(page * PAGE, PAGE) for page in range(pages)])
        unmapping.start()
        take(channel, pages)
        raw.accepted(Q.RESET_DEVICE)
        say(channel, BackendRequest.SHMEM_UNMAP, count=pages)
        unmapping.join()
        assert isinstance(unmapping.error, LocalProtocolError)
        assert (region._quota.used, region.mappings) == (0, ())


@pytest.mark.parametrize("status", [1, 0x7FFFFFFF, 0x80000000, (1 << 64) - 22])
def test_a_status_reaches_the_device_as_it_came(status: int) -> None:
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file:
        channel = raw.start()
        assert device.ready.wait(10)
        asking = Asking(device.shm[0].map, file, shm_offset=0, len=PAGE)
        asking.start()
        take(channel)
        say(channel, BackendRequest.SHMEM_MAP, status)
        asking.join()
        assert isinstance(asking.error, RequestFailed)
        assert asking.error.status == status


def test_w35_a_new_channel_outlives_a_request_on_the_old_one() -> None:
    device = Scripted()
    with raw_frontend(device) as raw, memory_file() as file:
        raw.start()
        assert device.ready.wait(10)
        for _ in range(50):
            asking = Asking(device.shm[0].map, file, shm_offset=0, len=PAGE)
            asking.start()
            assert raw.requests is not None
            take(raw.requests)
            raw.open_requests()
            asking.join()
            assert isinstance(asking.error, Disconnected | DeadlineExpired)
