"""Split and packed rings over a connection: negotiated, stopped and gone on with, broken and revived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.virtio_rig import DESCRIPTOR, INDIRECT
from vhostuser.errors import LocalProtocolError
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import VhostFeature, mask
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import DEADLINE, RawBackend, ServedRawFrontend, joined, raw_frontend, read_only, sparse_file
from vhostuser.testing.raw_frontend import MEMORY, PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.socket import wait
from vhostuser.virtio.formats import PACKED, SPLIT, Format
from vhostuser.virtio.numbers import Feature

from .devices import Scripted

both = pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
PLAIN = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
SIZE = 4


def features_for(ring: Format, *, indirect: bool = False) -> int:
    return PLAIN | ring.is_packed << Feature.RING_PACKED | indirect << Feature.RING_INDIRECT_DESC


def ready(*fds: OwnedFd) -> list[int]:
    """Those of the eventfds that are set, once one is."""
    return wait(fds, time.monotonic() + DEADLINE)


class Guest:
    """The driver of one queue on a raw front-end, which has negotiated and shared its memory."""

    def __init__(self, raw: ServedRawFrontend, memory: memoryview, ring: Format, *, index: int = 0) -> None:
        self.raw, self.ring, self.index, size = raw, ring, index, SIZE
        self.at = index << 16
        self.memory = memory[self.at : self.at + (1 << 16)]
        self.memory[:] = bytes(1 << 16)
        descriptors, available, used = ring.sizes(size)
        used_at = descriptors + -(-available // 4) * 4
        self.descriptors = self.memory[:descriptors]
        parts = self.descriptors, self.memory[descriptors : descriptors + available], self.memory[used_at : used_at + used]
        self.driver = ring.driver(size, *parts)
        self.addresses = VringAddr(index, 0, self.at, self.at + used_at, self.at + descriptors, 0)

    def start(self, base: int | None = None, *, enabled: bool = True) -> None:
        self.call = self.raw.eventfd()
        self.raw.accepted(Q.SET_VRING_CALL, U64(self.index), fds=[self.call])
        self.raw.set_up_queue(self.index, size=SIZE, base=base, at=self.at, ring=self.ring, enabled=enabled)
        self.kick, self.err = self.raw.kick, self.raw.err

    def stop(self) -> int:
        return VringState.unpack(self.raw.reply(Q.GET_VRING_BASE, VringState(self.index, 0)).payload).num

    def exchange(self, request: bytes = b"request") -> bytes:
        """One request, which the device echoes."""
        self.memory[0x8000 : 0x8000 + len(request)] = request
        given = self.driver.add([(self.at + 0x8000, len(request))], [(self.at + 0x9000, 16)])
        self.kicked()
        while (done := self.driver.collect()) is None:
            assert ready(self.call), "the device has answered"
            os.eventfd_read(self.call.fileno())
        assert done == (given, len(request))
        return bytes(self.memory[0x9000 : 0x9000 + len(request)])

    def broken(self) -> None:
        """Offer a buffer that is not there."""
        self.driver.add([(1 << 40, 1)], [])
        self.kicked()
        assert self.err
        assert ready(self.err), "the queue is broken"

    def kicked(self) -> None:
        assert self.kick
        os.eventfd_write(self.kick.fileno(), 1)


class Setting:
    """A raw front-end that has negotiated a format and shared memory, and its device."""

    def __init__(self, raw: ServedRawFrontend, features: int, *, protocol: int = PROTOCOL_FEATURES) -> None:
        raw.negotiate(features=features, protocol=protocol)
        raw.open_requests()
        self.raw, self.fd = raw, raw.share_memory()
        self.memory = map_file(self.fd.fileno(), MEMORY, 0)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 255])
def test_both_our_sides_exchange_more_than_a_packed_ring_holds_stop_go_on_and_reset(size: int) -> None:
    reply = 8 if size > 1 else 0
    with joined(Scripted(), packed=True) as (frontend, served):
        assert "RING_PACKED" in frontend.features
        frontend.share_memory(1 << 20)
        for end in (lambda: frontend.stop_queue(0), frontend.reset, lambda: frontend.stop_queue(0)):
            queue = frontend.start_queue(0, size=size)
            for at in range(3 * size + 1):
                request = at.to_bytes(8, "little")
                assert queue.exchange(request, reply) == request[:reply]
            stopped = end()
        position = (3 * size + 1) * (2 if reply else 1) % (2 * size)
        half = position % size | (position < size) << 15
        assert stopped == half << 16 | half
        assert served.backend.counters.broken == 0


@both
@pytest.mark.parametrize("offered", [False, True])
def test_q32_packed_rings_are_acknowledged_where_they_are_offered_and_wanted(ring: Format, offered: bool) -> None:
    with (
        RawBackend(features=features_for(PACKED if offered else SPLIT)) as raw,
        raw.frontend(packed=ring.is_packed) as frontend,
    ):
        assert ("RING_PACKED" in frontend.features) == (offered and ring.is_packed)


@both
@pytest.mark.parametrize("num", [3, 5, 255])
def test_q06_a_size_that_is_no_power_of_two_is_for_packed_rings(ring: Format, num: int) -> None:
    with raw_frontend(Scripted()) as raw:
        raw.negotiate(features=features_for(ring))
        (raw.accepted if ring.is_packed else raw.refused)(Q.SET_VRING_NUM, VringState(0, num))
        for wrong in (0, 257, 32769, 65535):
            raw.refused(Q.SET_VRING_NUM, VringState(0, wrong))
        raw.accepted(Q.SET_VRING_NUM, VringState(0, 1))


@both
def test_a_ring_goes_on_where_it_was_stopped(ring: Format) -> None:
    """The back-end forgets all of it at each stop; the driver goes on with the ring as it is."""
    device = Scripted()
    with raw_frontend(device) as raw:
        setting = Setting(raw, features_for(ring))
        guest = Guest(raw, setting.memory, ring)
        guest.start()
        for done in range(1, 2 * SIZE + 2):
            assert guest.exchange(b"number %d" % done) == b"number %d" % done
            base = guest.stop()
            position = 2 * done % (2 * SIZE)
            half = position % SIZE | (position < SIZE) << 15
            assert base == (half << 16 | half if ring.is_packed else done)
            guest.start(base)
        assert raw.served.backend.counters.broken == 0


@both
def test_a_stop_and_a_start_where_it_stopped_is_no_reset(ring: Format) -> None:
    device = Scripted()
    with raw_frontend(device) as raw:
        setting = Setting(raw, features_for(ring))
        guest = Guest(raw, setting.memory, ring)
        guest.start()
        guest.exchange()
        assert device.ready.wait(DEADLINE)
        device.ready.clear()
        guest.start(guest.stop())
        guest.exchange(b"after the stop")
        assert (device.ready.is_set(), device.resets) == (False, 0)
        guest.exchange()
        guest.stop()
        anew = Guest(raw, setting.memory, ring, index=1)
        anew.start()
        anew.exchange(b"after a reset")
        assert device.ready.is_set()


@both
def test_a_ring_whose_base_is_never_set_begins(ring: Format) -> None:
    with raw_frontend(Scripted()) as raw:
        setting = Setting(raw, features_for(ring))
        guest = Guest(raw, setting.memory, ring)
        assert guest.stop() == ring.first_base
        guest.start()
        assert guest.exchange() == b"request"
        raw.accepted(Q.RESET_DEVICE)
        again = Guest(raw, setting.memory, ring)
        again.kick, again.call = raw.eventfd(), raw.eventfd()
        raw.accepted(Q.SET_VRING_NUM, VringState(0, SIZE))
        raw.accepted(Q.SET_VRING_ADDR, again.addresses)
        raw.accepted(Q.SET_VRING_CALL, U64(0), fds=[again.call])
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[again.kick])
        raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 1))
        assert again.exchange() == b"request"


@pytest.mark.parametrize("base", [0x8000, 0x80008000])
def test_a_front_end_may_say_half_of_a_packed_base(base: int) -> None:
    """DPDK's virtio-user begins at 0x8000."""
    with raw_frontend(Scripted()) as raw:
        guest = Guest(raw, Setting(raw, features_for(PACKED)).memory, PACKED)
        guest.start(base)
        assert guest.exchange() == b"request"


def test_a_packed_base_that_is_none_is_refused() -> None:
    with raw_frontend(Scripted()) as raw:
        raw.negotiate(features=features_for(PACKED))
        raw.share_memory()
        raw.accepted(Q.SET_VRING_NUM, VringState(0, SIZE))
        raw.refused(Q.SET_VRING_BASE, VringState(0, 0x80048000))
        raw.accepted(Q.SET_VRING_BASE, VringState(0, 0x80018000))  # used ahead of available
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x1000, 0))
        raw.refused(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
        raw.accepted(Q.SET_VRING_BASE, VringState(0, 0x80018001))
        raw.accepted(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])


@both
def test_descriptors_in_read_only_memory_are_for_split_rings(ring: Format) -> None:
    with raw_frontend(Scripted()) as raw, sparse_file(8192) as memory, read_only(memory) as shown:
        raw.negotiate(features=features_for(ring))
        regions = [MemoryRegion(0, 4096, 0, 0), MemoryRegion(4096, 4096, 4096, 4096)]
        raw.accepted(Q.SET_MEM_TABLE, MemoryTable(regions), fds=[shown, memory])
        raw.accepted(Q.SET_VRING_NUM, VringState(0, SIZE))
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x1800, 0x1000, 0))
        (raw.refused if ring.is_packed else raw.accepted)(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])


@both
def test_a_ring_goes_on_over_another_memory_table(ring: Format) -> None:
    with raw_frontend(Scripted()) as raw:
        setting = Setting(raw, features_for(ring))
        guest = Guest(raw, setting.memory, ring)
        guest.start()
        for size in (MEMORY, MEMORY // 2, MEMORY):
            assert guest.exchange() == b"request"
            raw.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, size, 0, 0)]), fds=[setting.fd])
        assert guest.exchange() == b"request"


@both
@pytest.mark.parametrize("indirect", [False, True])
def test_q10_indirect_tables_are_taken_if_they_were_acknowledged(ring: Format, indirect: bool) -> None:
    with raw_frontend(Scripted()) as raw:
        setting = Setting(raw, features_for(ring, indirect=indirect))
        guest = Guest(raw, setting.memory, ring)
        guest.start()
        guest.memory[0xA000:0xA010] = DESCRIPTOR.pack(0x8000, 1, 0, 0)
        given = guest.driver.add([(0xA000, 16)], [])
        halves = guest.descriptors.cast("H")
        halves[7 if ring.is_packed else 6] |= INDIRECT
        guest.kicked()
        assert guest.err
        assert ready(guest.call, guest.err) == [(guest.call if indirect else guest.err).fileno()]
        assert guest.driver.collect() == ((given, 0) if indirect else None)
        assert raw.served.backend.counters.broken == (not indirect)


def stop(guest: Guest) -> None:
    guest.stop()


def reset(guest: Guest) -> None:
    guest.raw.accepted(Q.RESET_DEVICE)


@both
@pytest.mark.parametrize("end", [stop, reset])
def test_q35_a_broken_queue_is_alone_and_is_revived(ring: Format, end: Callable[[Guest], None]) -> None:
    with raw_frontend(Scripted()) as raw:
        setting = Setting(raw, features_for(ring))
        guest, other = (Guest(raw, setting.memory, ring, index=index) for index in (0, 1))
        for each in (guest, other):
            each.start()
            assert each.exchange() == b"request"
        guest.broken()
        assert [other.exchange() for _ in range(2 * SIZE)] == [b"request"] * 2 * SIZE
        guest.kicked()
        raw.alive()
        end(guest)
        again = Guest(raw, setting.memory, ring)
        again.start()
        assert [again.exchange() for _ in range(2 * SIZE)] == [b"request"] * 2 * SIZE
        assert raw.served.backend.counters.broken == 1


def test_q06_a_size_for_packed_rings_is_none_for_a_split_one() -> None:
    """The size was said before the format was changed; neither half runs such a ring."""
    with raw_frontend(Scripted()) as raw:
        raw.negotiate(features=features_for(PACKED))
        raw.share_memory()
        raw.accepted(Q.SET_VRING_NUM, VringState(0, 3))
        raw.accepted(Q.SET_FEATURES, U64(features_for(SPLIT)))
        raw.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x1000, 0))
        raw.refused(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_queue_that_is_started_twice_goes_on(packed: bool) -> None:
    with joined(Scripted(), packed=packed) as (frontend, _):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        for _ in range(2):
            with pytest.raises(LocalProtocolError, match="must be stopped"):
                frontend.start_queue(0, size=16)
            assert queue.exchange(b"on and on", 9) == b"on and on"
        frontend.reset()
        assert frontend.start_queue(0, size=16).exchange(b"again", 5) == b"again"
