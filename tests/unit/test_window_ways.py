"""A window takes the plain way or the long one, page by page: the same is mapped, refused and counted in either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.halves import HALVES, using
from tests.memory_map import areas, modes
from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory import core as core_module
from vhostuser.memory.core import WindowCore, is_sealed
from vhostuser.memory.mapping import FAILED
from vhostuser.memory.table import new_quota
from vhostuser.memory.window import Window
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.regions import Mapping, MappingTable, Quota
from vhostuser.testing import memory_file, sparse_file
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
PAGES = 6
FILE_PAGES = 4
RESERVED, READ_ONLY, READ_WRITE = "---p", "r--s", "rw-s"


class Refusing:
    """A plain way that does nothing."""

    def map(self, fd: int, shm_offset: int, len: int, fd_offset: int, flags: int) -> bool:
        return False

    def unmap(self, shm_offset: int, len: int) -> bool:
        return False


@pytest.fixture(params=[(half, way) for half in HALVES for way in ("plain", "long")], ids=" ".join)
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    half, way = request.param
    with using(half):
        made = Window(3, PAGES * PAGE, new_quota("device", 3))
    if way == "long":
        monkeypatch.setattr(made, "core", Refusing())
    yield made
    made.close()


@pytest.fixture
def file() -> Iterator[int]:
    """Pages that are full of their numbers, in a file that nobody sealed."""
    with memory_file(FILE_PAGES, seal=False) as fd:
        yield fd.fileno()


def asks(place: int, pages: int, page: int = 0, flags: int = 0) -> Mmap:
    return Mmap(3, page * PAGE, place * PAGE, pages * PAGE, flags)


def seen(window: Window) -> list[str]:
    return modes(window.base, window.base + window.size)


@pytest.mark.parametrize("flags", [0, 1])
def test_sh16_what_is_mapped_is_where_it_was_asked_for(window: Window, file: int, flags: int) -> None:
    for place in range(PAGES):
        for page in range(FILE_PAGES):
            for pages in (1, 2):
                if place + pages > PAGES or page + pages > FILE_PAGES:
                    with pytest.raises(RemoteProtocolError):
                        window.map(asks(place, pages, page, flags), file)
                else:
                    made = window.map(asks(place, pages, page, flags), file)
                    assert made == Mapping(place * PAGE, pages * PAGE, page * PAGE, bool(flags))
                    assert list(window.table) == [made]
                    assert window.quota.used == 1
                    shown = [READ_WRITE if flags else READ_ONLY] * pages
                    assert seen(window) == [RESERVED] * place + shown + [RESERVED] * (PAGES - place - pages)
                    assert window.read(place * PAGE, pages * PAGE) == os.pread(file, pages * PAGE, page * PAGE)
                    assert window.unmap(asks(place, pages)) == made
                assert (len(window.table), window.quota.used) == (0, 0)
                assert seen(window) == [RESERVED] * PAGES


@pytest.mark.parametrize("populate", [False, True])
@pytest.mark.parametrize("half", HALVES)
def test_pages_are_made_ahead_only_where_that_is_asked_for(half: str, populate: bool) -> None:
    with using(half):
        windows = [Window(0, PAGE, new_quota("device", 1), populate=populate)]
        windows += [] if populate else [Window(0, PAGE, new_quota("device", 1))]
    for window in windows:
        with sparse_file(PAGE) as fd:
            window.map(Mmap(0, 0, 0, PAGE, 1), fd.fileno())
            assert (os.fstat(fd.fileno()).st_blocks > 0) is populate
        window.close()


def test_sh26_the_quota_counts_each_mapping_once(window: Window, file: int) -> None:
    for place in range(3):
        window.map(asks(place, 1), file)
        assert window.quota.used == place + 1
    with pytest.raises(RemoteProtocolError, match="passes the device's quota of 3"):
        window.map(asks(3, 1), file)
    window.reset()
    assert (window.quota.used, len(window.table)) == (0, 0)
    assert seen(window) == [RESERVED] * PAGES


def test_sh24_a_file_is_sealed_if_its_seal_says_so_and_it_is_whole(window: Window) -> None:
    with memory_file(FILE_PAGES) as sealed, memory_file(FILE_PAGES, seal=False) as loose:
        window.map(asks(0, 1), sealed.fileno())
        window.map(asks(2, 1), loose.fileno())
    assert [window.table.is_sealed(each) for each in window.table] == [True, False]
    assert bytes(window.view(1, 2)) == window.read(1, 2)
    with pytest.raises(MemoryFault, match="is not sealed"):
        window.view(2 * PAGE, 1)


def test_every_access_is_within_the_region_and_what_is_mapped(window: Window, file: int) -> None:
    """Pages 0, 1 and 4 are mapped; page 1 is read-only."""
    window.map(asks(0, 1, 0, 1), file)
    window.map(asks(1, 1, 1, 0), file)
    window.map(asks(4, 1, 2, 1), file)
    mapped, writable = {0, 1, 4}, {0, 4}
    edges = [at * PAGE + off for at in range(PAGES + 1) for off in (-1, 0, 1)]
    for start in edges:
        for size in (-2, -1, 0, 1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 1, 1 << 40):
            inside = start >= 0 and size >= 0 and start + size <= PAGES * PAGE
            pages = set(range(start // PAGE, -(-(start + size) // PAGE))) if inside and size else set()
            why = "region 3: " if inside else "region 3: .* passes its end 0x6000"
            if inside and pages <= mapped:
                assert len(window.read(start, size)) == size
            else:
                with pytest.raises(MemoryFault, match=why):
                    window.read(start, size)
            if 0 <= size <= 3 * PAGE:
                if inside and pages <= writable:
                    window.write(start, bytes(size))
                else:
                    with pytest.raises(MemoryFault, match=why):
                        window.write(start, bytes(size))


def test_a_view_begins_and_ends_where_it_was_asked_for(window: Window, file: int) -> None:
    window.map(asks(1, 2, 1, 1), file)
    whole = os.pread(file, 2 * PAGE, PAGE)
    for start, size in ((0, 1), (1, 1), (PAGE - 1, 2), (PAGE, PAGE), (PAGE + 1, PAGE - 1), (0, 2 * PAGE), (7, 0)):
        view = window.view(PAGE + start, size, unsafe=True)
        assert bytes(view) == whole[start : start + size]
    for start, size in ((PAGE - 1, 2), (3 * PAGE - 1, 2), (3 * PAGE, 1)):
        with pytest.raises(MemoryFault):
            window.view(start, size, unsafe=True)


# The plain way alone: it says no to what is not entirely right, and leaves no trace


@pytest.fixture
def plain() -> Iterator[tuple[WindowCore, MappingTable, Quota, Window]]:
    with using("python"):
        quota, table = Quota("device", 2), MappingTable()
        window = Window(3, PAGES * PAGE, quota)
        yield WindowCore(window.base, window.size, table, quota, False), table, quota, window
    window.close()
    quota.add(-quota.used)


Plain = tuple[WindowCore, MappingTable, Quota, Window]


@pytest.mark.parametrize(
    ("shm_offset", "size", "fd_offset", "flags"),
    [
        (0, 0, 0, 0),
        (1, PAGE, 0, 0),
        (0, PAGE + 1, 0, 0),
        (0, PAGE, 1, 0),
        (2048, 2048, 2048, 0),
        (0, PAGE, 0, 2),
        (0, PAGE, 0, 1 << 63),
        (PAGES * PAGE, PAGE, 0, 0),
        (0, 7 * PAGE, 0, 0),
        (5 * PAGE, 2 * PAGE, 0, 0),
        (0, PAGE, FILE_PAGES * PAGE, 0),
        (0, 2 * PAGE, (FILE_PAGES - 1) * PAGE, 0),
        (0, PAGE, (1 << 63) - PAGE, 0),
        (0, PAGE, (1 << 64) - PAGE, 0),
    ],
)
def test_what_is_not_right_is_not_mapped_in_the_plain_way(
    plain: Plain, file: int, shm_offset: int, size: int, fd_offset: int, flags: int
) -> None:
    core, table, quota, window = plain
    assert core.map(file, shm_offset, size, fd_offset, flags) is False
    assert (len(table), quota.used, seen(window)) == (0, 0, [RESERVED] * PAGES)


def test_sh02_the_plain_way_maps_up_to_the_end_and_into_what_is_free(plain: Plain, file: int) -> None:
    core, table, quota, window = plain
    assert core.map(file, (PAGES - 2) * PAGE, 2 * PAGE, 2 * PAGE, 1)
    for start, size in ((PAGES - 3, 2), (PAGES - 2, 1), (PAGES - 1, 1), (0, PAGES)):
        assert not core.map(file, start * PAGE, size * PAGE, 0, 0)
    assert core.map(file, (PAGES - 3) * PAGE, PAGE, 0, 0)
    assert quota.used == 2
    assert not core.map(file, 0, PAGE, 0, 0), "the quota is used up"
    assert seen(window) == [RESERVED] * 3 + [READ_ONLY, READ_WRITE, READ_WRITE]
    for start, size in ((3, 2), (4, 1), (3, 3), (0, 1)):
        assert not core.unmap(start * PAGE, size * PAGE)
    assert [each.shm_offset // PAGE for each in table] == [3, 4]
    assert core.unmap(4 * PAGE, 2 * PAGE)
    assert core.unmap(3 * PAGE, PAGE)
    assert (len(table), quota.used, seen(window)) == (0, 0, [RESERVED] * PAGES)


def test_sh24_a_file_with_a_name_is_never_taken_for_sealed(plain: Plain, tmp_path: object) -> None:
    core, table, _, _ = plain
    with OwnedFd(os.open(f"{tmp_path}/file", os.O_RDWR | os.O_CREAT)) as fd, memory_file(1) as sealed:
        os.ftruncate(fd.fileno(), PAGE)
        assert core.map(fd.fileno(), 0, PAGE, 0, 0)
        assert core.map(sealed.fileno(), PAGE, PAGE, 0, 0)
    assert [table.is_sealed(each) for each in table] == [False, True]


def untouched(plain: Plain, file: int) -> bool:
    """Nothing is mapped of the file, neither in the window nor elsewhere in the process."""
    _, table, quota, window = plain
    inode = os.fstat(file).st_ino
    elsewhere = [area for area in areas(0, 1 << 64) if area.inode == inode]
    return (len(table), quota.used, seen(window), elsewhere) == (0, 0, [RESERVED] * PAGES, [])


@pytest.mark.parametrize("call", ["sys_mmap", "sys_mremap"])
def test_the_plain_way_leaves_no_trace_where_the_kernel_says_no(
    plain: Plain, file: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(core_module, call, lambda *_: int(str(FAILED)))  # as from a call: no object that is known
        assert plain[0].map(file, 0, PAGE, 0, 0) is False
    assert untouched(plain, file)


def test_the_plain_way_keeps_what_the_kernel_does_not_take_away(
    plain: Plain, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, table, quota, window = plain
    assert core.map(file, PAGE, PAGE, 0, 1) is True
    with monkeypatch.context() as patched:
        patched.setattr(core_module, "sys_mmap", lambda *_: int(str(FAILED)))  # as from a call: no object that is known
        assert core.unmap(PAGE, PAGE) is False
    assert (len(table), quota.used) == (1, 1)
    assert seen(window) == [RESERVED, READ_WRITE, *[RESERVED] * 4]
    assert core.unmap(PAGE, PAGE) is True


@pytest.mark.parametrize(("block", "huge", "taken"), [(4096, True, True), (1 << 21, True, False), (1 << 21, False, True)])
def test_only_a_file_of_large_blocks_is_asked_whether_its_pages_are_huge(
    plain: Plain, file: int, block: int, huge: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(file)
    fields = {name: getattr(status, name) for name in ("st_mode", "st_size", "st_nlink")}
    monkeypatch.setattr(os, "fstat", lambda fd: SimpleNamespace(**fields, st_blksize=block))
    monkeypatch.setattr(core_module, "has_huge_pages", lambda fd: huge)
    assert plain[0].map(file, 0, PAGE, 0, 0) is taken
    assert len(plain[1]) == int(taken)


@pytest.mark.parametrize("again", ["shorter", "gone"])
def test_sh24_a_file_that_shrank_before_its_seal_is_not_taken_for_whole(
    plain: Plain, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_file(2) as fd:
        looks = [os.fstat(fd.fileno())]

        def fstat(number: int) -> object:
            if looks:
                return looks.pop()
            if again == "gone":
                raise OSError(9, "Bad file descriptor")
            return SimpleNamespace(st_size=2 * PAGE - 1)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", fstat)
            assert plain[0].map(fd.fileno(), 0, 2 * PAGE, 0, 0) is True
    assert [plain[1].is_sealed(each) for each in plain[1]] == [False]


def test_an_fd_that_is_none_is_not_mapped_and_not_sealed(plain: Plain, file: int) -> None:
    assert plain[0].map(1 << 20, 0, PAGE, 0, 0) is False
    assert is_sealed(1 << 20) is False
    assert untouched(plain, file)
