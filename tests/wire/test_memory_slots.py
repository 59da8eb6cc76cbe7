"""ADD_MEM_REG, REM_MEM_REG and GET_MAX_MEM_SLOTS, at rest and under a ring that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.relations import BASE, OVERLAPPING, RELATIONS
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.dialects import RELEASED, RUST_VMM_016, Dialect
from vhostuser.protocol.numbers import MAX_MEM_SLOTS, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import SingleRegion, VringState
from vhostuser.testing import (
    MockDriver,
    ServedRawFrontend,
    leaving_nothing,
    memory_file,
    raw_frontend,
    read_only,
    sparse_file,
)
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES
from vhostuser.testing.usage import Usage, usage, wait_until
from vhostuser.transport.fds import OwnedFd

from .devices import Scripted

Q, F = FrontendRequest, ProtocolFeature
PAGE = 4096
MIB = 1 << 20
SLOTS = PROTOCOL_FEATURES | mask((F.CONFIGURE_MEM_SLOTS,))
FAR = 1 << 32


@pytest.fixture
def raw() -> Iterator[ServedRawFrontend]:
    """A device without shared memory regions; memory slots are negotiated, no memory is shared."""
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=SLOTS)
        yield raw


@pytest.fixture(params=[True, False], ids=["sealed", "may shrink"])
def file(request: pytest.FixtureRequest) -> Iterator[OwnedFd]:
    with memory_file(64, fill=b"", seal=request.param) as file:
        yield file


def at(guest: int, size: int = PAGE, *, user: int | None = None, offset: int = 0) -> SingleRegion:
    return SingleRegion(guest, size, guest if user is None else user, offset)


def held(raw: ServedRawFrontend) -> Usage:
    """What this process holds once the back-end is done with the last message."""
    raw.alive()
    return usage()


def mapped(file: OwnedFd) -> int:
    """How often this process maps the file."""
    inode = str(os.fstat(file.fileno()).st_ino)
    with open("/proc/self/maps") as maps:
        return sum(line.split()[4] == inode for line in maps)


@pytest.mark.parametrize(("regions", "offered"), [({}, True), ({0: MIB}, False)])
def test_k3_k4_slots_are_offered_only_by_devices_without_shared_memory(regions: dict[int, int], offered: bool) -> None:
    with raw_frontend(Scripted(regions=regions)) as raw:
        assert bool(raw.value(Q.GET_PROTOCOL_FEATURES) >> F.CONFIGURE_MEM_SLOTS & 1) is offered


def test_the_back_end_says_how_many_regions_it_takes(raw: ServedRawFrontend) -> None:
    assert raw.value(Q.GET_MAX_MEM_SLOTS) == MAX_MEM_SLOTS == 509


def test_slots_that_were_not_negotiated_are_refused() -> None:
    with raw_frontend(Scripted(regions={})) as raw, sparse_file(PAGE) as file:
        raw.negotiate()
        raw.refused(Q.ADD_MEM_REG, at(0), fds=[file])
        raw.refused(Q.REM_MEM_REG, at(0))


def test_m10_one_region_more_than_there_are_slots_is_refused(raw: ServedRawFrontend, file: OwnedFd) -> None:
    with leaving_nothing():
        for number in range(MAX_MEM_SLOTS):
            raw.accepted(Q.ADD_MEM_REG, at(number * PAGE), fds=[file])
        before = held(raw)
        raw.refused(Q.ADD_MEM_REG, at(FAR), fds=[file])
        assert held(raw) == before
        raw.accepted(Q.REM_MEM_REG, at(7 * PAGE))
        raw.accepted(Q.ADD_MEM_REG, at(FAR), fds=[file])
        for number in range(MAX_MEM_SLOTS):
            if number != 7:
                raw.accepted(Q.REM_MEM_REG, at(number * PAGE))
        raw.accepted(Q.REM_MEM_REG, at(FAR))


@pytest.mark.parametrize("relation", RELATIONS)
def test_m11_an_added_region_that_overlaps_is_refused_and_the_old_one_stays(raw: ServedRawFrontend, relation: str) -> None:
    (start, end), (first, last) = BASE, RELATIONS[relation]
    with sparse_file(MIB) as old, sparse_file(MIB) as new:
        raw.accepted(Q.ADD_MEM_REG, at(start, end - start), fds=[old])
        if relation in OVERLAPPING:
            raw.refused(Q.ADD_MEM_REG, at(first, last - first), fds=[new])
        else:
            raw.accepted(Q.ADD_MEM_REG, at(first, last - first), fds=[new])
        assert (mapped(old), mapped(new)) == (1, int(relation not in OVERLAPPING))


@pytest.mark.parametrize("size", [0, 1 << 63])
def test_m05_m06_an_added_region_that_can_not_be_is_refused(raw: ServedRawFrontend, file: OwnedFd, size: int) -> None:
    before = held(raw)
    raw.refused(Q.ADD_MEM_REG, at(0, size), fds=[file])
    raw.refused(Q.ADD_MEM_REG, at((1 << 64) - PAGE, 2 * PAGE), fds=[file])
    raw.refused(Q.ADD_MEM_REG, at(0, PAGE, offset=64 * PAGE), fds=[file])
    assert held(raw) == before


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({}, True),
        ({"mmap_offset": 1 << 40}, True),
        ({"guest_addr": 0}, False),
        ({"size": 2 * PAGE}, False),
        ({"user_addr": 0}, False),
    ],
)
@pytest.mark.parametrize("fds", [0, 1])
def test_m12_a_region_is_known_by_its_two_addresses_and_size(
    raw: ServedRawFrontend, file: OwnedFd, change: dict[str, int], fine: bool, fds: int
) -> None:
    region = at(FAR, user=2 * FAR, offset=PAGE)
    raw.accepted(Q.ADD_MEM_REG, region, fds=[file])
    open_fds = held(raw).fds
    body, sent = replace(region, **change), [file] * fds
    if fine:
        raw.accepted(Q.REM_MEM_REG, body, fds=sent)
    else:
        raw.refused(Q.REM_MEM_REG, body, fds=sent)
    assert (held(raw).fds, mapped(file)) == (open_fds, int(not fine))


def test_a_region_that_was_removed_may_not_be_removed_again(raw: ServedRawFrontend, file: OwnedFd) -> None:
    raw.accepted(Q.ADD_MEM_REG, at(0), fds=[file])
    raw.accepted(Q.REM_MEM_REG, at(0))
    raw.refused(Q.REM_MEM_REG, at(0))
    raw.refused(Q.REM_MEM_REG, at(0), fds=[file, file])


def test_a_thousand_regions_come_and_go_under_a_ring_that_runs(raw: ServedRawFrontend, file: OwnedFd) -> None:
    """Libblkio and QEMU add regions after rings have started: each carries a request, none is left behind."""
    ours = map_file(file.fileno(), 64 * PAGE, 0)
    raw.accepted(Q.ADD_MEM_REG, at(0, 32 * PAGE), fds=[file])
    ring = MockDriver(raw, ours)
    ours[PAGE : PAGE + 4] = b"ping"
    with leaving_nothing():
        for number in range(1000):
            region = at(FAR * (1 + number % 7), 32 * PAGE, user=FAR << 16, offset=32 * PAGE)
            raw.accepted(Q.ADD_MEM_REG, region, fds=[file])
            if number % 50 == 0:
                ours[32 * PAGE : 32 * PAGE + 4] = b"none"
                assert ring.exchange([(PAGE, 4)], [(region.guest_addr, 4)]) == 4
                assert bytes(ours[32 * PAGE : 32 * PAGE + 4]) == b"ping"
            raw.accepted(Q.REM_MEM_REG, region)
        wait_until(lambda: mapped(file) == 2, "ours, and the region of the ring")


def test_a_removed_region_is_gone_although_the_ring_is_idle(raw: ServedRawFrontend, file: OwnedFd) -> None:
    with memory_file(64) as extra:
        raw.accepted(Q.ADD_MEM_REG, at(0, 64 * PAGE), fds=[file])
        raw.accepted(Q.ADD_MEM_REG, at(FAR, 64 * PAGE), fds=[extra])
        ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0))
        assert ring.exchange([(FAR, 4)], [(PAGE, 4)]) == 4
        raw.accepted(Q.REM_MEM_REG, at(FAR, 64 * PAGE))
        wait_until(lambda: mapped(extra) == 0, "it is not mapped any more")
        ring.offer([(FAR, 4)], [(PAGE, 4)])
        ring.broken()


def test_a_region_in_which_a_ring_lies_is_not_removed(raw: ServedRawFrontend, file: OwnedFd) -> None:
    raw.accepted(Q.ADD_MEM_REG, at(0, 64 * PAGE), fds=[file])
    ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0))
    raw.refused(Q.REM_MEM_REG, at(0, 64 * PAGE))
    assert ring.exchange([(PAGE, 4)], [(2 * PAGE, 4)]) == 4
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    raw.accepted(Q.REM_MEM_REG, at(0, 64 * PAGE))
    wait_until(lambda: mapped(file) == 1, "only ours is left")


@pytest.mark.parametrize("second", [True, False], ids=["sealed", "may shrink"])
def test_m15_a_buffer_that_spans_adjacent_regions_has_all_its_bytes(
    raw: ServedRawFrontend, file: OwnedFd, second: bool
) -> None:
    """The two lie in two files, of which one may shrink and the other not."""
    with memory_file(64, fill=b"", seal=second) as other:
        raw.accepted(Q.ADD_MEM_REG, at(0, 64 * PAGE), fds=[file])
        raw.accepted(Q.ADD_MEM_REG, at(64 * PAGE, 8 * PAGE, user=FAR), fds=[other])
        ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0))
        border = 64 * PAGE
        os.pwrite(file.fileno(), b"over t", border - 6)
        os.pwrite(other.fileno(), b"he border", 0)
        assert ring.exchange([(border - 6, 15)], [(2 * PAGE, 15)]) == 15
        assert os.pread(file.fileno(), 15, 2 * PAGE) == b"over the border"
        assert ring.exchange([(2 * PAGE, 15)], [(border - 8, 16)]) == 15
        assert os.pread(file.fileno(), 8, border - 8) + os.pread(other.fileno(), 8, 0) == b"over the bordere", (
            "the last byte is as it was"
        )
        assert ring.exchange([(border - 4, 4)], [(border + 8 * PAGE - 4, 4)]) == 4, "it ends where memory ends"
        ring.offer([(border + 8 * PAGE - 4, 5)], [(2 * PAGE, 5)])
        ring.broken()


def test_m17_a_ring_that_straddles_two_regions_is_refused(raw: ServedRawFrontend, file: OwnedFd) -> None:
    """They touch in both address spaces and in the file: still each is a mapping of its own, and a ring is one piece."""
    raw.accepted(Q.ADD_MEM_REG, at(0, PAGE), fds=[file])
    raw.accepted(Q.ADD_MEM_REG, at(PAGE, PAGE, offset=PAGE), fds=[file])
    with pytest.raises(AssertionError, match="was refused"):
        raw.set_up_queue(at=PAGE - 16)
    raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
    ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0)[PAGE:], at=PAGE)
    assert ring.exchange([(PAGE - 2, 4)], [(PAGE - 6, 4)]) == 4


def test_a_read_only_region_is_not_written(raw: ServedRawFrontend, file: OwnedFd) -> None:
    with memory_file(8) as extra, read_only(extra) as read:
        raw.accepted(Q.ADD_MEM_REG, at(0, 64 * PAGE), fds=[file])
        raw.accepted(Q.ADD_MEM_REG, at(FAR, 8 * PAGE), fds=[read])
        ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0))
        assert ring.exchange([(FAR + PAGE, 4)], [(PAGE, 4)]) == 4
        assert os.pread(file.fileno(), 4, PAGE) == b"\1\1\1\1"
        ring.offer([(PAGE, 4)], [(FAR, 4)])
        ring.broken()
        assert os.pread(extra.fileno(), 4, 0) == bytes(4)


# GPA_ADDRESSES


@pytest.mark.parametrize(
    ("dialect", "regions", "offered"),
    [(RELEASED, {}, True), (RUST_VMM_016, {}, False), (RUST_VMM_016, {0: MIB}, True), (RELEASED, {0: MIB}, False)],
    ids=["released", "0.16", "0.16: SHMEM", "SHMEM"],
)
def test_bit_21_is_offered_where_it_means_what_the_device_has(
    dialect: Dialect, regions: dict[int, int], offered: bool
) -> None:
    with raw_frontend(Scripted(regions=regions), dialect=dialect) as raw:
        assert bool(raw.value(Q.GET_PROTOCOL_FEATURES) >> 21 & 1) is offered


@pytest.mark.parametrize("by_guest", [True, False])
def test_gpa_addresses_makes_ring_addresses_guest_addresses(file: OwnedFd, by_guest: bool) -> None:
    """What the region says as its user address does not matter then, but it still is part of its name."""
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=SLOTS | (mask((F.GPA_ADDRESSES,)) if by_guest else 0))
        region = at(FAR, 64 * PAGE, user=2 * FAR)
        raw.accepted(Q.ADD_MEM_REG, region, fds=[file])
        ring = MockDriver(raw, map_file(file.fileno(), 64 * PAGE, 0), at=FAR if by_guest else 2 * FAR)
        assert ring.exchange([(FAR + PAGE, 4)], [(FAR, 4)]) == 4
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        with pytest.raises(AssertionError, match="was refused"):
            raw.set_up_queue(at=2 * FAR if by_guest else FAR)
        raw.reply(Q.GET_VRING_BASE, VringState(0, 0))
        raw.refused(Q.REM_MEM_REG, replace(region, user_addr=FAR))
        raw.accepted(Q.REM_MEM_REG, region)
