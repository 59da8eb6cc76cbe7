"""Guest memory as rings of both formats meet it: borders, gaps, and both ends of the address space."""

from __future__ import annotations

import pytest

from tests.virtio_rig import BUFFERS, WRITE
from tests.wire.devices import Scripted
from vhostuser.memory.mapping import map_file
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import memory_file

from .rig import ANSWER, HALF, KINDS, MEMORY, RINGS, Connected, Kind, backend_of, connected, echoes

PAGE = 4096
TOP = 1 << 64
BORDER, END = BUFFERS + HALF, BUFFERS + 2 * HALF


def test_m15_a_buffer_that_spans_adjacent_regions_has_all_its_bytes(rig: Connected) -> None:
    rig.buffers[HALF - 6 : HALF + 9] = b"over the border"
    assert rig.ask((BORDER - 6, 15, 0), (ANSWER, 15, WRITE)) == 15
    assert bytes(rig.buffers[0x1000:0x100F]) == b"over the border"
    rig.buffers[:6] = b"abcdef"
    assert rig.ask((BUFFERS, 6, 0), (BORDER - 3, 6, WRITE)) == 6
    assert bytes(rig.buffers[HALF - 6 : HALF + 9]) == b"oveabcdefborder"


def test_m15_a_buffer_may_end_at_a_border_or_with_memory(rig: Connected) -> None:
    for end in (BORDER, END):
        rig.buffers[end - BUFFERS - 4 : end - BUFFERS] = b"last"
        assert rig.ask((end - 4, 4, 0), (end - 8, 4, WRITE)) == 4
        assert bytes(rig.buffers[end - BUFFERS - 8 : end - BUFFERS]) == b"lastlast"


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("addr", [BUFFERS - 1, END - 3, END, BUFFERS - 4, TOP - 4, TOP - 1])
def test_m15_a_buffer_that_spans_a_gap_breaks(rig: Connected, addr: int, flags: int) -> None:
    rig.buffers[:] = b"\xaa" * rig.buffers.nbytes
    rig.give((BUFFERS, 4, 0), (addr, 4, flags))
    rig.broken()
    assert bytes(rig.buffers) == b"\xaa" * rig.buffers.nbytes
    assert backend_of(rig).counters.broken == 1
    echoes(rig.another())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("guest", [0, TOP - PAGE], ids=["first", "last"])
@pytest.mark.parametrize("user", [0, TOP - RINGS], ids=["uva 0", "last uva"])
def test_m16_rings_and_buffers_at_the_edges_of_the_address_space(kind: Kind, guest: int, user: int) -> None:
    """A buffer is the first or the last page of guest memory, the ring is in the first or the last user addresses."""
    with connected(Scripted(), kind) as rig:
        rig.stop()
        with memory_file(MEMORY // PAGE, fill=b"", seal=kind[1]) as file:
            regions = [MemoryRegion(1 << 40, RINGS, user, 0), MemoryRegion(guest, PAGE, 1 << 50, RINGS)]
            rig.raw.accepted(Q.SET_MEM_TABLE, MemoryTable(regions), fds=[file, file])
            moved = type(rig)(rig.raw, map_file(file.fileno(), MEMORY, 0), user=user)
        moved.buffers[:4] = b"edge"
        assert moved.ask((guest, 4, 0), (guest + PAGE - 4, 4, WRITE)) == 4
        assert bytes(moved.buffers[PAGE - 4 : PAGE]) == b"edge"
        moved.give((guest + PAGE - 4, 5, 0))
        moved.broken()
        moved.close()


@pytest.mark.parametrize("part", range(3), ids=["descriptors", "available", "used"])
@pytest.mark.parametrize("where", ["outside", "by its last bytes", "wraps", "in the gap"])
def test_m17_a_ring_that_is_not_all_in_one_region_is_refused(rig: Connected, part: int, where: str) -> None:
    """At SET_VRING_ADDR, or when it would start. The queue may be set up anew, and the other one never stopped."""
    other = rig.another(index=1)
    rig.stop()
    alignment = (16, 4, 4)[part]
    last = RINGS - rig.format.sizes(256)[part] // alignment * alignment + alignment
    places = [0, 0x2000, 0x4000]
    places[part] = {"outside": RINGS, "by its last bytes": last, "wraps": TOP - alignment, "in the gap": 1 << 49}[where]
    rig.raw.accepted(Q.SET_VRING_NUM, VringState(0, 256))
    status = rig.raw.status(Q.SET_VRING_ADDR, VringAddr(0, 0, places[0], places[2], places[1], 0))
    assert status or rig.raw.status(Q.SET_VRING_KICK, U64(0), fds=[rig.raw.eventfd()])
    echoes(other)
    rig.stop()
    echoes(rig.another())
    other.close()


def test_m17_a_ring_may_end_where_its_region_does(rig: Connected) -> None:
    rig.stop()
    descriptors, available, used = rig.format.sizes(8)
    span = descriptors + -(-available // 4) * 4 + used
    echoes(rig.another(at=RINGS - -(-span // 16) * 16))
