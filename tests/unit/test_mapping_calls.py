"""The system calls on memory: what they leave in this process, and what is said where they can't."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from tests.halves import HALVES, using
from tests.memory_map import areas, modes
from vhostuser.errors import MemoryFault
from vhostuser.memory import mapping
from vhostuser.testing import memory_file, sparse_file
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8
RESERVED, READ_ONLY, READ_WRITE = "---p", "r--s", "rw-s"
Copy = Callable[[int, int], object]


@pytest.fixture
def base() -> Iterator[int]:
    """Four reserved pages."""
    address = mapping.reserve(4 * PAGE)
    yield address
    mapping.release(address, 4 * PAGE)


@pytest.fixture
def file() -> Iterator[int]:
    with memory_file(4, seal=False) as fd:
        yield fd.fileno()


def test_a_reservation_is_there_until_it_is_released() -> None:
    address = mapping.reserve(3 * PAGE)
    assert modes(address, address + 3 * PAGE) == [RESERVED] * 3
    mapping.release(address, 3 * PAGE)
    assert not [area for area in areas(address, address + 3 * PAGE) if area.mode == RESERVED and area.start == address]


@pytest.mark.parametrize("populate", [False, True])
@pytest.mark.parametrize(
    ("prot", "mode"), [(mmap.PROT_READ, READ_ONLY), (mmap.PROT_READ | mmap.PROT_WRITE, READ_WRITE), (0, "---s")]
)
def test_a_file_is_placed_in_a_part_of_a_reservation(base: int, file: int, prot: int, mode: str, populate: bool) -> None:
    mapping.place(base + PAGE, 2 * PAGE, file, PAGE, prot, populate=populate)
    assert modes(base, base + 4 * PAGE) == [RESERVED, mode, mode, RESERVED]
    if prot:
        assert mapping.copy_from(base + PAGE, 2 * PAGE) == os.pread(file, 2 * PAGE, PAGE)
    mapping.restore(base + PAGE, PAGE)
    assert modes(base, base + 4 * PAGE) == [RESERVED, RESERVED, mode, RESERVED]


def test_pages_are_made_ahead_only_where_that_is_asked_for(base: int) -> None:
    for populate in (None, False, True):
        with sparse_file(PAGE) as fd:
            more = {} if populate is None else {"populate": populate}
            mapping.place(base, PAGE, fd.fileno(), 0, mmap.PROT_READ | mmap.PROT_WRITE, **more)
            assert (os.fstat(fd.fileno()).st_blocks > 0) is (populate is True)
            mapping.restore(base, PAGE)


@pytest.mark.parametrize("call", ["sys_mmap", "sys_mremap"])
@pytest.mark.parametrize("result", [mapping.FAILED, None])
def test_a_place_that_fails_leaves_the_reservation_and_no_mapping_elsewhere(
    base: int, file: int, call: str, result: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(mapping, call, lambda *_: result)
        if call == "sys_mremap":
            with pytest.raises(OSError, match="mremap"):
                mapping.place(base, PAGE, file, 0, mmap.PROT_READ)
        else:
            with pytest.raises(OSError, match="mmap"):
                mapping.place(base, PAGE, file, 0, mmap.PROT_READ)
            for fails in (lambda: mapping.reserve(PAGE), lambda: mapping.restore(base, PAGE)):
                with pytest.raises(OSError, match=r"mmap|cannot reserve 0x1000 bytes"):
                    fails()
            with pytest.raises(OSError, match="mmap"):
                mapping.map_file(file, PAGE, 0)
    assert modes(base, base + 4 * PAGE) == [RESERVED] * 4
    inode = os.fstat(file).st_ino
    assert not [area for area in areas(0, 1 << 64) if area.inode == inode]


@pytest.mark.parametrize("result", [mapping.FAILED, None])
def test_a_second_view_that_can_not_be_had_is_an_error(
    base: int, result: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "sys_mremap", lambda *_: result)
    with pytest.raises(OSError, match="mremap"):
        mapping.second_view(base, PAGE, writable=False)


def test_a_second_view_has_the_pages_and_not_the_place_of_the_first(base: int, file: int) -> None:
    for writable in (True, False):
        mapping.place(base, 2 * PAGE, file, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
        view = mapping.second_view(base, 2 * PAGE, writable=writable)
        mapping.restore(base, 2 * PAGE)
        assert (view.nbytes, view.readonly) == (2 * PAGE, not writable)
        assert bytes(view) == os.pread(file, 2 * PAGE, PAGE)


@pytest.mark.parametrize(("writable", "mode"), [(True, READ_WRITE), (False, READ_ONLY)])
def test_a_mapped_file_is_gone_with_its_last_view(file: int, writable: bool, mode: str) -> None:
    inode = os.fstat(file).st_ino
    view = mapping.map_file(file, 2 * PAGE, PAGE, writable=writable)
    assert (view.nbytes, view.readonly, bytes(view)) == (2 * PAGE, not writable, os.pread(file, 2 * PAGE, PAGE))
    address = mapping.start_of(view)
    assert [(area.start, area.mode) for area in areas(0, 1 << 64) if area.inode == inode] == [(address, mode)]
    if writable:
        assert mapping.address_of(view) == address
        assert mapping.address_of(view[7:]) == address + 7
    part = view[PAGE:]
    del view
    assert [area for area in areas(0, 1 << 64) if area.inode == inode]
    del part
    assert not [area for area in areas(0, 1 << 64) if area.inode == inode]


def test_a_sealed_file_has_its_size_and_nobody_may_change_that_or_seal_it_further() -> None:
    with mapping.sealed_file("name", 3 * PAGE) as fd:
        number = fd.fileno()
        assert os.fstat(number).st_size == 3 * PAGE
        assert fcntl.fcntl(number, mapping.F_GET_SEALS) == SEAL | SHRINK | GROW
        assert not os.get_inheritable(number)
        for size in (2 * PAGE, 4 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(number, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(number, mapping.F_ADD_SEALS, WRITE)
        assert os.pwrite(number, b"x", 0) == 1
        assert not mapping.may_shrink(number)


@pytest.mark.parametrize(
    ("seals", "shrinks"), [(0, True), (GROW, True), (SEAL, True), (SHRINK, False), (SHRINK | GROW, False)]
)
def test_only_the_seal_against_shrinking_keeps_a_file_whole(seals: int, shrinks: bool) -> None:
    with sparse_file(PAGE) as fd:
        fcntl.fcntl(fd.fileno(), mapping.F_ADD_SEALS, seals)
        assert mapping.may_shrink(fd.fileno()) is shrinks


def test_a_sealed_file_that_can_not_be_had_leaves_no_fd() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"Invalid argument|File too large"):
        mapping.sealed_file("name", -1)
    assert os.listdir("/proc/self/fd") == before


def test_huge_pages_are_told_by_the_file_system(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not mapping.has_huge_pages(file)
    assert mapping.block_size(file) == PAGE == mmap.PAGESIZE
    assert mapping.has_huge_pages(1 << 20), "what can't be asked is not mapped"
    monkeypatch.setattr(mapping, "has_huge_pages", lambda fd: True)
    assert mapping.block_size(file) == os.fstatvfs(file).f_bsize


# Copies


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("start", [0, 1, PAGE - 3])
@pytest.mark.parametrize("size", [0, 1, 3, PAGE, 2 * PAGE])
def test_copies_are_byte_for_byte(half: str, base: int, file: int, start: int, size: int) -> None:
    mapping.place(base, 4 * PAGE, file, 0, mmap.PROT_READ | mmap.PROT_WRITE)
    with using(half):
        data = os.urandom(size)
        mapping.pour(bytearray(data), base + start)
        assert os.pread(file, size, start) == data
        buffer = bytearray(size)
        mapping.fill(buffer, base + start)
        assert buffer == data
    assert mapping.copy_from(base + start, size) == data
    other = data[::-1]
    mapping.copy_to(base + start, other)
    assert os.pread(file, 4 * PAGE, 0)[start : start + size] == other


def test_a_copy_that_meets_a_missing_page_says_which_bytes_are_not_there(base: int, file: int) -> None:
    mapping.place(base, PAGE, file, 0, mmap.PROT_READ | mmap.PROT_WRITE)
    copies: list[Copy] = [
        mapping.copy_from,
        lambda address, size: mapping.copy_to(address, bytes(size)),
        lambda address, size: mapping.fill(bytearray(size), address),
        lambda address, size: mapping.pour(bytearray(size), address),
    ]
    with using("python"):
        for copy in copies:
            for before, missing in ((0, 1), (1, 7), (5, PAGE)):
                with pytest.raises(MemoryFault, match=f"{missing} bytes at {base + PAGE:#x} are not there"):
                    copy(base + PAGE - before, before + missing)


def test_what_is_read_only_is_not_written(base: int, file: int) -> None:
    mapping.place(base, PAGE, file, 0, mmap.PROT_READ)
    with pytest.raises(MemoryFault, match="4 bytes at"):
        mapping.copy_to(base, b"1234")
    assert mapping.copy_from(base, 4) == bytes(4)


def test_an_error_of_a_call_has_its_number(tmp_path: object) -> None:
    with OwnedFd(os.open(f"{tmp_path}", os.O_RDONLY)) as fd, pytest.raises(OSError, match="mmap") as caught:
        mapping.map_file(fd.fileno(), PAGE, 0, writable=False)
    assert caught.value.errno == errno.ENODEV
