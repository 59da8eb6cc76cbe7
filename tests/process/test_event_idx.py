"""EVENT_IDX between two processes: no notification is lost, and few are sent ("Virtqueue Interrupt Suppression")."""

from __future__ import annotations

import socket
from random import Random

import pytest

from tests.event_driver import EventDriver
from tests.packed_event_driver import PackedEventDriver, named
from vhostuser import _native
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringAddr, VringState
from vhostuser.testing import BackendProcess, RawFrontend
from vhostuser.testing.raw_frontend import FEATURES, MEMORY
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.numbers import Feature
from vhostuser.virtio.packed import FIRST_BASE

REQUESTS = 100_000
EVENT_IDX = 1 << Feature.RING_EVENT_IDX

pytestmark = pytest.mark.skipif(not _native.accelerated, reason="pure Python does not offer EVENT_IDX")


def start(raw: RawFrontend, driver: EventDriver | PackedEventDriver, kick: OwnedFd, call: OwnedFd, base: int) -> None:
    """Start ring 0 where the driver has laid it out."""
    raw.accepted(Q.SET_VRING_NUM, VringState(0, driver.size))
    raw.accepted(Q.SET_VRING_BASE, VringState(0, base))
    raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, driver.used_at, driver.available_at, 0))
    raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[call])
    raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[kick])
    raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("size", "requests"), [(1, 5_000), (64, REQUESTS)])
def test_q27_a_legal_driver_loses_no_notification(size: int, requests: int) -> None:
    """Each side sleeps as soon as it may, and wakes the other one only where it asked for that."""
    random, base = Random(size), 65000
    with BackendProcess("tests.process.devices:Swallow") as process, RawFrontend(_socket(process)) as raw:
        assert raw.value(Q.GET_FEATURES) & EVENT_IDX
        raw.negotiate(features=FEATURES | EVENT_IDX)
        memory, kick, call = raw.share_memory(), raw.eventfd(), raw.eventfd()
        view = map_file(memory.fileno(), MEMORY, 0)
        driver = EventDriver(size, view, kick, call, base=base)
        start(raw, driver, kick, call, base)
        left = requests
        while left or driver.free < size:
            count = min(left, driver.free, random.randint(0, size))
            driver.offer(count)
            left -= count
            if driver.free < size and (not left or not driver.free or random.randrange(2)):
                driver.sleep()
            driver.collect()
        assert driver.seen == (base + requests) & 0xFFFF
        assert raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload == VringState(0, driver.seen).pack()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("size", "requests"), [(1, 5_000), (61, REQUESTS)])
def test_q27_a_legal_driver_of_a_packed_ring_loses_no_notification(size: int, requests: int) -> None:
    """The same; neither does it see one before another, nor one twice."""
    random = Random(size)
    with BackendProcess("tests.process.devices:Swallow") as process, RawFrontend(_socket(process)) as raw:
        raw.negotiate(features=FEATURES | EVENT_IDX | 1 << Feature.RING_PACKED)
        memory, kick, call = raw.share_memory(), raw.eventfd(), raw.eventfd()
        driver = PackedEventDriver(size, map_file(memory.fileno(), MEMORY, 0), kick, call)
        start(raw, driver, kick, call, FIRST_BASE)
        while driver.next < requests or driver.free < size:
            count = min(requests - driver.next, driver.free, random.randint(0, size))
            driver.offer(count)
            if driver.free < size and (driver.next == requests or not driver.free or random.randrange(2)):
                driver.sleep()
            driver.collect()
        assert driver.seen == requests
        half = named(requests % (2 * size), size)
        assert raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload == VringState(0, half << 16 | half).pack()


def _socket(process: BackendProcess) -> socket.socket:
    assert process.socket is not None
    return process.socket
