"""Guest memory: regions mapped and translated; the arena that a front-end shares; copies that survive."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from vhostuser.errors import LocalProtocolError, MemoryFault, RemoteProtocolError
from vhostuser.memory import mapping
from vhostuser.memory.added import AddedMemory
from vhostuser.memory.arena import Arena
from vhostuser.memory.guest import GuestMemory, GuestRegion, map_region
from vhostuser.protocol.payloads import MemoryRegion, SingleRegion
from vhostuser.testing import memory_file
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2
TOP = (1 << 64) - PAGE


@pytest.fixture
def file() -> Iterator[int]:
    with memory_file(8) as fd:
        yield fd.fileno()


def table(*regions: tuple[int, int, int]) -> GuestMemory:
    """A table of regions (guest address, bytes, user address), each filled with its own number."""
    made = []
    for number, (guest, size, user) in enumerate(regions, 1):
        made.append(GuestRegion(guest, user, memoryview(bytearray([number]) * size), ()))
    return GuestMemory(made)


def joined(memory: GuestMemory, addr: int, size: int) -> bytes:
    return b"".join(memory.slices(addr, size))


def test_m15_a_buffer_that_spans_adjacent_regions_comes_in_pieces() -> None:
    memory = table((PAGE, PAGE, 0), (0, PAGE, PAGE))
    assert joined(memory, PAGE - 2, 4) == b"\2\2\1\1"
    assert [view.nbytes for view in memory.slices(0, 2 * PAGE)] == [PAGE, PAGE]


@pytest.mark.parametrize(
    ("addr", "size"), [(PAGE - 1, 2), (PAGE, 1), (2 * PAGE - 1, 1), (3 * PAGE - 1, 2), (0, 1 << 32), (1 << 63, 1), (TOP, 1)]
)
def test_m15_a_buffer_that_meets_a_gap_is_a_fault(addr: int, size: int) -> None:
    with pytest.raises(MemoryFault, match="no guest memory at 0x"):
        table((0, PAGE, 0), (2 * PAGE, PAGE, 0)).slices(addr, size)


def test_m15_a_buffer_may_end_at_the_border() -> None:
    memory = table((0, PAGE, 0), (2 * PAGE, PAGE, 0))
    assert joined(memory, PAGE - 1, 1) == b"\1"
    assert joined(memory, 3 * PAGE - 2, 2) == b"\2\2"
    assert memory.slices(1 << 60, 0) == []
    with pytest.raises(MemoryFault):
        GuestMemory().slices(0, 1)


def test_m16_addresses_at_the_edges_of_the_address_space() -> None:
    memory = table((0, PAGE, 0), (TOP, PAGE, TOP))
    assert joined(memory, 0, 1) == b"\1"
    assert joined(memory, TOP + PAGE - 1, 1) == b"\2"
    assert bytes(memory.at_user(TOP, PAGE)) == b"\2" * PAGE
    assert bytes(memory.at_user(0, 1)) == b"\1"
    with pytest.raises(MemoryFault):
        memory.slices(TOP, PAGE + 1)


@pytest.mark.parametrize(("addr", "size"), [(0x6000, 1), (0x6FFF, 2), (0x7FFF, 2), (0x8000, 1), ((1 << 64) - 1, 2)])
def test_m17_a_user_range_that_leaves_its_region_is_a_fault(addr: int, size: int) -> None:
    with pytest.raises(MemoryFault, match="no region has"):
        table((0, PAGE, 0x7000), (PAGE, PAGE, 0x9000)).at_user(addr, size)


def test_regions_are_mapped_and_show_the_file(file: int) -> None:
    memory = GuestMemory.of([MemoryRegion(0, PAGE, 0, 2 * PAGE), MemoryRegion(PAGE, PAGE, PAGE, 0)], [file, file])
    assert joined(memory, PAGE - 1, 2) == b"\2\0"
    memory.slices(0, 1)[0][:] = b"!"
    assert os.pread(file, 1, 2 * PAGE) == b"!"


@pytest.mark.parametrize("skip", [1, 512, PAGE - 1])
def test_m07_an_unaligned_offset_shows_the_right_bytes(file: int, skip: int) -> None:
    region = map_region(MemoryRegion(0, 2 * PAGE, 0, PAGE + skip), file)
    assert bytes(region.view[:]) == os.pread(file, 2 * PAGE, PAGE + skip)


@pytest.mark.parametrize(("size", "offset"), [(9 * PAGE, 0), (PAGE, 8 * PAGE), (PAGE, (1 << 64) - PAGE), (1 << 63, 1 << 63)])
def test_m06_a_region_past_the_end_of_its_file_is_refused(file: int, size: int, offset: int) -> None:
    with pytest.raises(RemoteProtocolError, match="passes the file's end 0x8000") as caught:
        map_region(MemoryRegion(0, size, 0, offset), file)
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("size", size, 8 * PAGE)


def test_m09_an_fd_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    ways = [(tmp_path, os.O_RDONLY), (tmp_path / "file", os.O_PATH), (tmp_path / "file", os.O_WRONLY)]
    for number in (*os.pipe(), *(os.open(path, flags) for path, flags in ways)):
        with OwnedFd(number), pytest.raises(RemoteProtocolError, match=r"passes the file's end|can't be mapped"):
            map_region(MemoryRegion(0, 1, 0, 0), number)


def test_a_region_of_a_read_only_file_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * PAGE)
    with OwnedFd(os.open(tmp_path / "file", os.O_RDONLY)) as fd:
        view = map_region(MemoryRegion(0, PAGE, 0, 0), fd.fileno()).view
    assert view.readonly
    assert bytes(view[:1]) == b"x"


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"user_addr": 9}, False), ({"guest_addr": PAGE}, False), ({"mmap_offset": PAGE}, False)],
)
def test_w35_a_region_that_stays_is_not_mapped_again(file: int, change: dict[str, int], same: bool) -> None:
    first = MemoryRegion(0, PAGE, 0, 0)
    known = GuestMemory.of([first], [file])
    again = GuestMemory.of([replace(first, **change)], [file], known)
    assert (again.regions[0] is known.regions[0]) is same


def test_the_same_region_of_another_file_is_another_one(file: int) -> None:
    region = MemoryRegion(0, PAGE, 0, 0)
    known = GuestMemory.of([region], [file])
    with OwnedFd(os.memfd_create("other")) as other:
        os.ftruncate(other.fileno(), PAGE)
        assert GuestMemory.of([region], [other.fileno()], known).regions[0] is not known.regions[0]


# The arena


def test_the_arena_hands_out_zeroed_aligned_memory() -> None:
    arena = Arena(4 * PAGE)
    blocks = {arena.take(size, align): align for size, align in ((3, 16), (5, 64), (17, 16), (1, 1), (100, 4096))}
    assert len(blocks) == 5
    assert all(start % align == 0 for start, align in blocks.items())
    start = arena.take(4)
    arena.view[start : start + 4] = b"abcd"
    arena.give_back(start)
    arena.clear()
    assert arena.free == 4 * PAGE
    assert not any(arena.view[arena.take(4 * PAGE) :])
    with pytest.raises(MemoryError, match="1 bytes of shared memory wanted, 0 are left"):
        arena.take(1)
    kept = arena.view[0:3]
    arena.close()
    assert (bytes(kept), arena.free) == (bytes(3), 0)


@pytest.mark.parametrize("pages", [1, 3, 4, 7])
def test_blocks_do_not_overlap_and_all_of_the_arena_comes_back(pages: int) -> None:
    arena, rand = Arena(pages * PAGE), random.Random(pages)
    taken: dict[int, int] = {}
    for _ in range(3000):
        if taken and rand.random() < 0.5:
            start, size = taken.popitem() if rand.random() < 0.5 else (next(iter(taken)), 0)
            taken.pop(start, None)
            arena.give_back(start)
            continue
        size = rand.choice((1, 16, 17, 100, 512, 1000, PAGE))
        try:
            start = arena.take(size)
        except MemoryError:
            continue
        assert start + size <= pages * PAGE
        taken[start] = size
        ends = [(at, at + taken[at]) for at in sorted(taken)]
        assert all(end <= after for (_, end), (after, _) in itertools.pairwise(ends))
    for start in taken:
        arena.give_back(start)
    assert arena.free == pages * PAGE
    assert [arena.take(PAGE) % PAGE for _ in range(pages)] == [0] * pages
    arena.close()


def test_only_what_was_taken_can_be_given_back() -> None:
    arena = Arena(PAGE)
    start = arena.take(100)
    for wrong in (start + 16, 1 << 40):
        with pytest.raises(LocalProtocolError, match=f"no shared memory is taken at {wrong:#x}"):
            arena.give_back(wrong)
    arena.give_back(start)
    with pytest.raises(LocalProtocolError, match=f"no shared memory is taken at {start:#x}"):
        arena.give_back(start)
    arena.close()


def test_the_arena_is_sealed_and_its_region_says_where_it_is() -> None:
    arena = Arena(PAGE)
    assert arena.region == MemoryRegion(0, PAGE, 0, 0)
    for size in (0, 2 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd.fileno(), size)
    arena.close()


def test_an_arena_that_cannot_be_had_leaves_no_fd_behind() -> None:
    with pytest.raises(OSError, match="mmap"):
        Arena(0)


def test_added_blocks_lie_apart_behind_the_arena() -> None:
    added = AddedMemory()
    first = added.make(PAGE, 3 * PAGE)
    added.keep(first)
    second = added.make(PAGE, 3 * PAGE)
    added.keep(second)
    assert (first.guest_addr, second.guest_addr) == (4 * PAGE, 6 * PAGE)
    assert second.region == SingleRegion(6 * PAGE, PAGE, 6 * PAGE, 0)
    added.forget(first)
    second.view[:3] = b"abc"
    added.close()
    assert (first.view.nbytes, second.view.nbytes) == (0, 0)


def test_a_table_gives_another_one_with_a_region_more_or_less(file: int) -> None:
    one = GuestMemory.of([MemoryRegion(0, PAGE, 0, PAGE)], [file])
    two = one.plus(MemoryRegion(PAGE, PAGE, PAGE, 3 * PAGE), file)
    assert joined(two, PAGE - 1, 2) == b"\1\3"
    assert (one.end, two.end, GuestMemory().end) == (PAGE, 2 * PAGE, 0)
    assert joined(two.minus(0), PAGE, 1) == b"\3"
    with pytest.raises(MemoryFault):
        two.minus(0).slices(0, 1)


# Mapping


def test_views_of_files_outlive_the_fd(file: int) -> None:
    view = mapping.map_file(file, PAGE, 3 * PAGE)
    assert mapping.address_of(view) % PAGE == 0
    assert view[0] == 3
    assert mapping.map_file(file, PAGE, 0, writable=False).readonly
    with pytest.raises(OSError, match="mmap"):
        mapping.map_file(file, PAGE, 1)


def test_restoring_and_doubling_what_cannot_be_is_an_error() -> None:
    with pytest.raises(OSError, match="mmap"):
        mapping.restore(1, PAGE)
    base = mapping.reserve(PAGE)
    with pytest.raises(OSError, match="mremap"):
        mapping.second_view(base, 0, writable=False)
    mapping.release(base, PAGE)


def test_copies_touch_nothing_that_is_not_there() -> None:
    base = mapping.reserve(2 * PAGE)
    assert mapping.copy_from(base, 0) == b""
    mapping.copy_to(base, b"")
    for copy in (lambda: mapping.copy_from(base, 1), lambda: mapping.copy_to(base, b"x")):
        with pytest.raises(MemoryFault, match="1 bytes at 0x"):
            copy()
    mapping.release(base, 2 * PAGE)


def test_a_copy_that_the_kernel_forbids_is_an_error_of_its_own() -> None:
    view = memoryview(bytearray(8))
    with mock.patch("os.getpid", return_value=1 << 30), pytest.raises(OSError, match="process_vm copy"):
        mapping.copy_from(mapping.address_of(view), 8)


def cut_and_seal(file: int) -> None:
    """What a hostile peer does between two looks at its file."""
    os.ftruncate(file, 0)
    fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK)


def test_m06_a_file_that_is_sealed_after_its_size_was_seen_is_fragile() -> None:
    """Else it could have shrunk in between, and is believed to be whole."""
    with memory_file(2, seal=False) as fd:

        def fstat(file: int) -> os.stat_result:
            seen = real(file)
            cut_and_seal(file)
            return seen

        real = os.fstat
        with mock.patch.object(os, "fstat", fstat):
            region = map_region(MemoryRegion(0, 2 * PAGE, 0, 0), fd.fileno())
        assert region.fragile


@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_RDWR])
def test_a_region_is_another_one_with_an_fd_of_other_rights(first: int) -> None:
    description = MemoryRegion(0, PAGE, 0, 0)
    with memory_file(1) as fd:
        fds = [OwnedFd(os.open(f"/proc/self/fd/{fd.fileno()}", mode)) for mode in (first, os.O_RDONLY ^ os.O_RDWR ^ first)]
        one, other = fds
        with one, other:
            known = map_region(description, one.fileno())
            assert map_region(description, one.fileno(), [known]) is known
            found = map_region(description, other.fileno(), [known])
            assert found.view.readonly != known.view.readonly


def test_an_arena_gives_no_negative_number_of_bytes() -> None:
    arena = Arena(1 << 16)
    free = arena.free
    with pytest.raises(ValueError, match="-1 bytes"):
        arena.take(-1)
    assert arena.free == free
    arena.close()
