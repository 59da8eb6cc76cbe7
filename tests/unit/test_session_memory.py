"""Memory tables: what a front-end may describe, and the thirteen ways in which two regions can lie."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.legal import PAGE, READY, F, Q, send, session
from tests.relations import BASE, OVERLAPPING, RELATIONS
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.numbers import END_OF_ADDRESSES
from vhostuser.protocol.payloads import (
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    XenMemoryRegion,
    XenMemoryTable,
    XenSingleRegion,
)
from vhostuser.protocol.rules import Channel

TOP = END_OF_ADDRESSES - PAGE
OLD = MemoryRegion(BASE[0], BASE[1] - BASE[0], 0, 0)
relations = pytest.mark.parametrize("name", RELATIONS)


def between(start: int, end: int) -> MemoryRegion:
    return MemoryRegion(start, end - start, start, 0)


@pytest.mark.parametrize("count", [0, 9])
def test_m01_a_table_of_another_length_is_refused_and_the_old_one_stays(count: int) -> None:
    end = session()
    body = MemoryTable([between(at * PAGE, (at + 1) * PAGE) for at in range(count)])
    with pytest.raises(RemoteProtocolError, match="payload size") as caught:
        send(end, Q.SET_MEM_TABLE, body, fds=count)
    assert end.state is READY
    assert caught.value.field == "size"


@pytest.mark.parametrize("count", [0, 2, 9, (1 << 32) - 1])
def test_m01_a_count_that_is_not_the_payloads_is_refused(count: int) -> None:
    end, body = session(), MemoryTable([OLD]).pack()
    frame = request_frame(Q.SET_MEM_TABLE, None, (3,))._replace(payload=count.to_bytes(4, "little") + body[4:])
    with pytest.raises(RemoteProtocolError, match="num_regions") as caught:
        end.admit(Channel.FRONTEND, frame)
    assert (caught.value.field, caught.value.value) == ("num_regions", count)
    assert end.state is READY


@pytest.mark.parametrize("count", range(1, 9))
def test_tables_of_one_to_eight_regions_replace_the_old_one(count: int) -> None:
    regions = [between(2 * at * PAGE, (2 * at + 1) * PAGE) for at in range(count)]
    assert send(session(), Q.SET_MEM_TABLE, MemoryTable(regions), fds=count).regions == tuple(regions)


@pytest.mark.parametrize("fds", [0, 1, 3])
def test_m02_each_region_has_its_fd(fds: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"came with {fds} fds, must be 2"):
        send(session(), Q.SET_MEM_TABLE, MemoryTable([between(0, PAGE), between(PAGE, 2 * PAGE)]), fds=fds)


@relations
def test_m03_regions_of_a_table_do_not_overlap(name: str) -> None:
    table, end = MemoryTable([OLD, between(*RELATIONS[name])]), session()
    if name in OVERLAPPING:
        with pytest.raises(RemoteProtocolError, match="overlaps the region at") as caught:
            send(end, Q.SET_MEM_TABLE, table, fds=2)
        assert (caught.value.field, caught.value.value) == ("guest_addr", RELATIONS[name][0])
        assert end.state is READY
    else:
        assert send(end, Q.SET_MEM_TABLE, table, fds=2).regions == table.regions


@relations
def test_m11_an_added_region_does_not_overlap(name: str) -> None:
    end = session(state=replace(READY, regions=(OLD,)))
    new = between(*RELATIONS[name])
    body = SingleRegion(new.guest_addr, new.size, new.user_addr, 0)
    if name in OVERLAPPING:
        with pytest.raises(RemoteProtocolError, match="overlaps the region at"):
            send(end, Q.ADD_MEM_REG, body, fds=1)
        assert end.state.regions == (OLD,)
    else:
        assert send(end, Q.ADD_MEM_REG, body, fds=1).regions == (OLD, new)


@pytest.mark.parametrize("slots", [1, 2])
def test_m10_no_more_regions_are_added_than_there_are_slots(slots: int) -> None:
    end = session(state=replace(READY, regions=(OLD,), max_slots=slots))
    body = SingleRegion(0, PAGE, 0, 0)
    if slots > 1:
        assert len(send(end, Q.ADD_MEM_REG, body, fds=1).regions) == 2
        return
    with pytest.raises(RemoteProtocolError, match="slots, 0x1") as caught:
        send(end, Q.ADD_MEM_REG, body, fds=1)
    assert (caught.value.field, caught.value.limit) == ("guest_addr", 1)
    assert end.state.regions == (OLD,)


@pytest.mark.parametrize(
    ("region", "field"),
    [
        (MemoryRegion(0, 0, 0, 0), "size"),
        (MemoryRegion(TOP, 2 * PAGE, 0, 0), "guest_addr"),
        (MemoryRegion(0, 2 * PAGE, TOP, 0), "user_addr"),
        (MemoryRegion(0, 2 * PAGE, 0, TOP), "mmap_offset"),
        (MemoryRegion(1, END_OF_ADDRESSES - 1, 1, 2), "mmap_offset"),
    ],
)
def test_m05_a_region_neither_is_empty_nor_wraps(region: MemoryRegion, field: str) -> None:
    single = SingleRegion(region.guest_addr, region.size, region.user_addr, region.mmap_offset)
    for request, body in ((Q.SET_MEM_TABLE, MemoryTable([region])), (Q.ADD_MEM_REG, single)):
        end = session(state=replace(READY, regions=()))
        with pytest.raises(RemoteProtocolError, match=r"wraps past|must be at least") as caught:
            send(end, request, body, fds=1)
        assert (caught.value.request, caught.value.field) == (request.name, field)
        assert end.state.regions == ()


def test_m05_m16_a_region_may_end_with_the_address_space() -> None:
    table = MemoryTable([MemoryRegion(0, PAGE, 0, 0), MemoryRegion(TOP, PAGE, TOP, 0)])
    assert send(session(), Q.SET_MEM_TABLE, table, fds=2).regions == table.regions


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({}, True),
        ({"mmap_offset": 99}, True),
        ({"guest_addr": BASE[0] + PAGE}, False),
        ({"size": PAGE}, False),
        ({"user_addr": 1}, False),
    ],
)
@pytest.mark.parametrize("fds", [0, 1])
def test_w13_m12_a_region_is_removed_by_its_two_addresses_and_size(change: dict[str, int], fine: bool, fds: int) -> None:
    end = session(state=replace(READY, regions=(OLD, between(0, PAGE))))
    body = replace(SingleRegion(OLD.guest_addr, OLD.size, OLD.user_addr, OLD.mmap_offset), **change)
    if fine:
        assert send(end, Q.REM_MEM_REG, body, fds=fds).regions == (between(0, PAGE),)
    else:
        with pytest.raises(RemoteProtocolError, match="is no region of that user address and size"):
            send(end, Q.REM_MEM_REG, body, fds=fds)
        assert end.state.regions == (OLD, between(0, PAGE))


def test_xen_regions_take_the_place_of_plain_ones() -> None:
    end = session(state=replace(READY, protocol_acknowledged=1 << F.XEN_MMAP | 1 << F.CONFIGURE_MEM_SLOTS))
    first, second = XenMemoryRegion(0, PAGE, 0, 0, 1, 7), XenMemoryRegion(PAGE, PAGE, 0, 0, 1, 7)
    assert send(end, Q.SET_MEM_TABLE, XenMemoryTable([first]), fds=1).regions == (first,)
    assert send(end, Q.ADD_MEM_REG, XenSingleRegion(PAGE, PAGE, 0, 0, 1, 7), fds=1).regions == (first, second)
    assert send(end, Q.REM_MEM_REG, XenSingleRegion(0, PAGE, 0, 5, 0, 0)).regions == (second,)
    with pytest.raises(RemoteProtocolError, match="payload size 40"):
        send(end, Q.SET_MEM_TABLE, MemoryTable([OLD]), fds=1)
