"""SET_VRING_ADDR for a ring that was started: at work it stays, at rest it moves, and no memory table moves it."""

from __future__ import annotations

from dataclasses import replace

from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import SingleRegion, VringState
from vhostuser.testing import raw_frontend, sparse_file
from vhostuser.testing.raw_frontend import MEMORY, PROTOCOL_FEATURES
from vhostuser.virtio.formats import Format

from .devices import Scripted
from .test_formats import Guest, Setting, both, features_for

PAGE = 4096
SLOTS = PROTOCOL_FEATURES | 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS
ELSEWHERE = 0x4000
"""From the ring's old place."""


def elsewhere(guest: Guest) -> None:
    """Lay the guest's half of the ring anew; SET_VRING_ADDR is not sent yet."""
    at, ring, size = ELSEWHERE, guest.ring, len(guest.descriptors) // 16
    descriptors, available, used = ring.sizes(size)
    used_at = at + descriptors + -(-available // 4) * 4
    guest.descriptors = guest.memory[at : at + descriptors]
    driver_part = guest.memory[at + descriptors : at + descriptors + available]
    guest.driver = ring.driver(size, guest.descriptors, driver_part, guest.memory[used_at : used_at + used])
    now = guest.addresses
    guest.addresses = replace(
        now, descriptor=now.descriptor + at, used=guest.at + used_at, available=guest.at + at + descriptors
    )


def add_memory(setting: Setting) -> None:
    """A region that has nothing to do with any ring."""
    with sparse_file(PAGE) as file:
        setting.raw.accepted(Q.ADD_MEM_REG, SingleRegion(MEMORY, PAGE, MEMORY, 0), fds=[file])


@both
def test_a_ring_that_rests_is_served_where_it_was_laid_last(ring: Format) -> None:
    with raw_frontend(Scripted(regions={})) as raw:
        guest = Guest(raw, Setting(raw, features_for(ring)).memory, ring)
        guest.start(enabled=False)
        elsewhere(guest)
        raw.accepted(Q.SET_VRING_ADDR, guest.addresses)
        raw.enable(0)
        assert guest.exchange() == b"request"


@both
def test_a_ring_that_was_at_work_goes_on_elsewhere_at_its_index(ring: Format) -> None:
    bases = []
    for shift in (0, ELSEWHERE):
        with raw_frontend(Scripted(regions={})) as raw:
            guest = Guest(raw, Setting(raw, features_for(ring)).memory, ring)
            guest.start()
            for _ in range(3):
                guest.exchange()
            raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 0))
            guest.memory[shift : shift + 0x1000] = guest.memory[:0x1000]
            now = guest.addresses
            parts = {name: getattr(now, name) + shift for name in ("descriptor", "used", "available")}
            raw.accepted(Q.SET_VRING_ADDR, replace(now, **parts))
            raw.enable(0)
            raw.alive()
            bases.append(guest.stop())
            assert raw.served.backend.counters.broken == 0
    assert bases[0] == bases[1] != ring.first_base


@both
def test_a_ring_at_work_keeps_its_addresses(ring: Format) -> None:
    with raw_frontend(Scripted(regions={})) as raw:
        setting = Setting(raw, features_for(ring), protocol=SLOTS)
        guest = Guest(raw, setting.memory, ring)
        guest.start()
        assert guest.exchange() == b"request"
        for field in ("descriptor", "used", "available"):
            raw.refused(Q.SET_VRING_ADDR, replace(guest.addresses, **{field: 0x6000}))
            assert guest.exchange() == b"request"
        add_memory(setting)
        assert guest.exchange() == b"request"
        raw.accepted(Q.SET_VRING_ADDR, guest.addresses)
        raw.accepted(Q.SET_VRING_ADDR, replace(guest.addresses, flags=1, log=0x7000))
        assert guest.exchange() == b"request"


@both
def test_a_change_of_memory_moves_no_ring_to_other_addresses(ring: Format) -> None:
    """A ring that rests is not bound any more, so a table may come in which its new place is not yet."""
    with raw_frontend(Scripted(regions={})) as raw:
        setting = Setting(raw, features_for(ring), protocol=SLOTS)
        guest = Guest(raw, setting.memory, ring)
        guest.start(enabled=False)
        raw.accepted(Q.SET_VRING_ADDR, replace(guest.addresses, descriptor=MEMORY + PAGE))
        add_memory(setting)
        raw.refused(Q.SET_VRING_ENABLE, VringState(0, 1))
        raw.accepted(Q.SET_VRING_ADDR, guest.addresses)
        raw.enable(0)
        assert guest.exchange() == b"request"
