"""Where bytes of guest memory lie: by guest address, by user address, in this process, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vhostuser.errors import MemoryFault
from vhostuser.memory.fragile import RingPart
from vhostuser.memory.guest import GuestMemory, map_region
from vhostuser.memory.mapping import start_of
from vhostuser.protocol.payloads import MemoryRegion
from vhostuser.testing import memory_file
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
REGIONS = (
    MemoryRegion(0x10_0000, 2 * PAGE, 0x7F00_0000_1000, 5 * PAGE),
    MemoryRegion(0x8000_0000_0000, PAGE, 0x1000, 0),
    MemoryRegion(0x3000, 3 * PAGE, 0x7F00_0000_4000, 2 * PAGE + 512),
)
"""In no order, with gaps, one from the middle of a page of its file."""


@pytest.fixture(params=[True, False], ids=["sealed", "fragile"])
def file(request: pytest.FixtureRequest) -> Iterator[int]:
    with memory_file(8, seal=request.param) as fd:
        os.pwrite(fd.fileno(), os.urandom(8 * PAGE), 0)
        yield fd.fileno()


@pytest.fixture
def memory(file: int) -> GuestMemory:
    return GuestMemory.of(REGIONS, [file] * 3)


PIECES = [(start, size) for start in (0, 1, 511, PAGE - 1) for size in (1, 2, PAGE - 1)]


def fitting(region: MemoryRegion) -> list[tuple[int, int]]:
    """Ranges within a region: at its start, and up to its end."""
    inside = [(start, size) for start, size in PIECES if start + size <= region.size]
    return inside + [(region.size - start - size, size) for start, size in inside]


def test_each_address_shows_its_byte_of_the_file(memory: GuestMemory, file: int) -> None:
    for region in REGIONS:
        for start, size in fitting(region):
            content = os.pread(file, size, region.mmap_offset + start)
            assert b"".join(memory.slices(region.guest_addr + start, size)) == content
            part = memory.ring_part(region.user_addr + start, size)
            part.refresh()
            assert (part.nbytes, bytes(part.copy)) == (size, content)
            assert bytes(memory.bare_at_user(region.user_addr + start, size)) == content
            if not memory.fragile:
                assert bytes(memory.at_user(region.user_addr + start, size)) == content


def test_a_view_of_what_was_given_is_traced_to_its_guest_address(memory: GuestMemory) -> None:
    """As the dirty log does, whatever the order of the regions in this process is."""
    for region in REGIONS:
        for start, size in fitting(region):
            views = memory.slices(region.guest_addr + start, size)
            assert list(memory.homes(views)) == [(region.guest_addr + start, size)]


def test_a_part_of_a_solid_view_is_traced_to_its_guest_address() -> None:
    with memory_file(8) as fd:
        memory = GuestMemory.of(REGIONS, [fd.fileno()] * 3)
        for region in REGIONS:
            (view,) = memory.slices(region.guest_addr, region.size)
            for start, size in fitting(region):
                assert list(memory.homes([view[start : start + size]])) == [(region.guest_addr + start, size)]


def test_m15_a_range_over_what_is_not_there_is_a_fault_wherever_it_begins(memory: GuestMemory) -> None:
    for region in REGIONS:
        end = region.guest_addr + region.size
        for start, size in ((region.guest_addr - 1, 1), (region.guest_addr - 1, 2), (end, 1), (end - 1, 2), (end - 5, 7)):
            with pytest.raises(MemoryFault, match="no guest memory at"):
                memory.slices(start, size)


def test_m17_a_ring_over_what_is_not_there_is_a_fault_wherever_it_begins(memory: GuestMemory) -> None:
    for region in REGIONS:
        end = region.user_addr + region.size
        for start, size in ((region.user_addr - 1, 1), (region.user_addr - 1, 2), (end, 1), (end - 1, 2), (end - 5, 7)):
            for look_up in (memory.at_user, memory.bare_at_user, memory.ring_part):
                with pytest.raises(MemoryFault, match="no region has"):
                    look_up(start, size)
        assert isinstance(memory.ring_part(end - 5, 5), RingPart)


def test_the_end_is_behind_the_last_region_and_a_region_goes_by_its_address(memory: GuestMemory) -> None:
    assert memory.end == 0x8000_0000_1000
    assert [region.guest_addr for region in memory.regions] == [0x3000, 0x10_0000, 0x8000_0000_0000]
    for gone in REGIONS:
        left = memory.minus(int(str(gone.guest_addr)))
        assert [region.guest_addr for region in left.regions] == sorted({r.guest_addr for r in REGIONS} - {gone.guest_addr})
    assert memory.minus(0x8000_0000_0000).end == 0x10_0000 + 2 * PAGE
    assert len(memory.minus(7).regions) == 3


def test_a_region_says_what_it_is_of(memory: GuestMemory, file: int) -> None:
    status = os.fstat(file)
    for region, seen in zip(sorted(REGIONS, key=lambda region: region.guest_addr), memory.regions, strict=True):
        assert (seen.guest_addr, seen.user_addr, seen.offset) == (region.guest_addr, region.user_addr, region.mmap_offset)
        assert seen.file == (status.st_dev, status.st_ino)
        assert seen.view.nbytes == seen.bare.nbytes == region.size
        assert seen.fragile is memory.fragile
        if isinstance(seen.view, memoryview):
            assert (seen.address - start_of(seen.view)) % PAGE == region.mmap_offset % PAGE
    assert len(memory.shown) == 3
    assert len(memory.solid) == (0 if memory.fragile else 3)


def test_w35_a_region_stays_the_same_one_whatever_else_its_fd_was_opened_for(file: int) -> None:
    known = map_region(REGIONS[0], file)
    for flags in (os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_NONBLOCK):
        with OwnedFd(os.open(f"/proc/self/fd/{file}", flags)) as other:
            assert map_region(REGIONS[0], other.fileno(), [known]) is known


def test_m06_a_region_may_end_with_its_file(file: int) -> None:
    for pages in (1, 8):
        region = MemoryRegion(0, pages * PAGE, 0, (8 - pages) * PAGE)
        assert map_region(region, file).view.nbytes == pages * PAGE
