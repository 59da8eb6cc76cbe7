"""A window: what it shows of which file, what it refuses, and that it never has a hole. In both implementations."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.halves import HALVES, using
from tests.memory_map import areas, modes
from vhostuser.errors import MemoryFault, RemoteProtocolError
from vhostuser.memory import mapping
from vhostuser.memory.table import new_quota
from vhostuser.memory.window import PROCESS, Window
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.regions import DEVICE_QUOTA, Mapping
from vhostuser.transport.fds import OwnedFd

PAGE = 4096
PAGES = 16
RESERVED, READ_ONLY, READ_WRITE = "---p", "r--s", "rw-s"
CONTENT = bytes(at // PAGE + 1 for at in range(8 * PAGE))
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2
FdMaker = Callable[[Path], int]


@pytest.fixture(params=HALVES)
def window(request: pytest.FixtureRequest) -> Iterator[Window]:
    with using(request.param):
        made = Window(3, PAGES * PAGE, new_quota("device", 8))
    yield made
    made.close()


@pytest.fixture
def file() -> Iterator[int]:
    with OwnedFd(os.memfd_create("file", os.MFD_ALLOW_SEALING)) as fd:
        os.write(fd.fileno(), CONTENT)
        yield fd.fileno()


def asks(place: int, pages: int, *, page: int = 0, flags: int = 0) -> Mmap:
    return Mmap(3, page * PAGE, place * PAGE, pages * PAGE, flags)


def modes_of(window: Window) -> list[str]:
    return modes(window.base, window.base + window.size)


def is_untouched(window: Window) -> bool:
    return modes_of(window) == [RESERVED] * PAGES and not len(window.table) and window.quota.used == 0


def test_a_window_is_reserved_and_nobody_may_touch_it(window: Window) -> None:
    assert is_untouched(window)


def test_sh16_pages_are_mapped_as_the_flags_say(window: Window, file: int) -> None:
    window.map(asks(2, 3, page=1), file)
    window.map(asks(8, 2, page=4, flags=1), file)
    assert modes_of(window) == [RESERVED] * 2 + [READ_ONLY] * 3 + [RESERVED] * 3 + [READ_WRITE] * 2 + [RESERVED] * 6
    assert window.read(2 * PAGE, 3 * PAGE) == CONTENT[PAGE : 4 * PAGE]
    assert list(window.table) == [Mapping(2 * PAGE, 3 * PAGE, PAGE, False), Mapping(8 * PAGE, 2 * PAGE, 4 * PAGE, True)]
    with pytest.raises(MemoryFault, match="is mapped read-only"):
        window.write(2 * PAGE, b"x")
    window.write(8 * PAGE + 5, b"hello")
    assert os.pread(file, 5, 4 * PAGE + 5) == b"hello"


def test_reads_and_writes_may_cross_mappings_that_touch(window: Window, file: int) -> None:
    window.map(asks(0, 1, page=3, flags=1), file)
    window.map(asks(1, 1, page=0, flags=1), file)
    assert window.read(PAGE - 1, 2) == CONTENT[4 * PAGE - 1 : 4 * PAGE] + CONTENT[:1]
    window.write(PAGE - 1, b"ab")
    assert (os.pread(file, 1, 4 * PAGE - 1), os.pread(file, 1, 0)) == (b"a", b"b")


@pytest.mark.parametrize(
    ("offset", "len"), [(0, 1), (PAGE - 1, 2), (4 * PAGE - 1, 2), (6 * PAGE, PAGE), (-1, 1), (0, -1), (PAGES * PAGE, 1)]
)
def test_what_is_not_mapped_gives_a_fault(window: Window, file: int, offset: int, len: int) -> None:
    window.map(asks(1, 3), file)
    with pytest.raises(MemoryFault, match="region 3: "):
        window.read(offset, len)
    with pytest.raises(MemoryFault):
        window.view(offset, len, unsafe=True)


def test_sh35_an_unmapped_range_is_reserved_again_and_nothing_lands_in_it(window: Window, file: int) -> None:
    window.map(asks(1, 3), file)
    window.unmap(asks(1, 3))
    assert is_untouched(window)
    others = [mapping.reserve(PAGE) for _ in range(1000)]
    try:
        assert not [at for at in others if window.base <= at < window.base + window.size]
        assert is_untouched(window)
    finally:
        for at in others:
            mapping.release(at, PAGE)


def test_sh39_a_reset_takes_all_away_and_the_window_works_on(window: Window, file: int) -> None:
    for place in range(0, PAGES, 2):
        window.map(asks(place, 1), file)
    window.reset()
    window.reset()
    assert is_untouched(window)
    window.map(asks(0, 1), file)
    assert window.read(0, 1) == CONTENT[:1]


def test_close_gives_the_range_back_and_may_be_called_twice(window: Window, file: int) -> None:
    window.map(asks(0, 1), file)
    base, size = window.base, window.size
    window.close()
    window.close()
    assert not [area for area in areas(base, base + size) if area.mode in (READ_ONLY, READ_WRITE)]
    assert window.quota.used == 0


@pytest.mark.parametrize(
    "request_",
    [asks(0, 0), asks(PAGES, 1), Mmap(3, 0, 1, PAGE), Mmap(3, 0, (1 << 64) - PAGE, 2 * PAGE), asks(0, 1, flags=2)],
)
def test_sh07_a_refused_map_changes_nothing(window: Window, file: int, request_: Mmap) -> None:
    with pytest.raises(RemoteProtocolError):
        window.map(request_, file)
    assert is_untouched(window)


def test_sh02_the_old_mapping_is_byte_identical_after_a_refused_one(window: Window, file: int) -> None:
    window.map(asks(4, 2), file)
    with pytest.raises(RemoteProtocolError, match="overlaps"):
        window.map(asks(5, 2, page=4, flags=1), file)
    assert window.read(4 * PAGE, 2 * PAGE) == CONTENT[: 2 * PAGE]
    assert modes_of(window)[3:7] == [RESERVED, READ_ONLY, READ_ONLY, RESERVED]


def pipe(path: Path) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def write_only(path: Path) -> int:
    (path / "file").write_bytes(CONTENT)
    return os.open(path / "file", os.O_WRONLY)


def path_only(path: Path) -> int:
    (path / "file").write_bytes(CONTENT)
    return os.open(path / "file", os.O_PATH)


KINDS: dict[str, tuple[FdMaker, type[Exception]]] = {
    "pipe": (pipe, RemoteProtocolError),
    "eventfd": (lambda path: os.eventfd(0), RemoteProtocolError),
    "directory": (lambda path: os.open(path, os.O_RDONLY), RemoteProtocolError),
    "O_PATH": (path_only, OSError),
    "O_WRONLY": (write_only, OSError),
    "/proc file": (lambda path: os.open("/proc/self/stat", os.O_RDONLY), RemoteProtocolError),
    "/dev/null": (lambda path: os.open("/dev/null", os.O_RDWR), RemoteProtocolError),
    "/dev/zero": (lambda path: os.open("/dev/zero", os.O_RDWR), RemoteProtocolError),
    "empty file": (lambda path: os.memfd_create("empty"), RemoteProtocolError),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sh12_an_fd_that_is_no_readable_regular_file_is_refused(window: Window, tmp_path: Path, kind: str) -> None:
    make, error = KINDS[kind]
    with OwnedFd(make(tmp_path)) as fd:
        with pytest.raises(error) as caught:
            window.map(asks(0, 1), fd.fileno())
        assert isinstance(caught.value, OSError | RemoteProtocolError)
        assert not window.core.map(fd.fileno(), 0, PAGE, 0, 0)
    assert is_untouched(window)


def test_sh15_a_read_only_fd_is_not_mapped_read_write(window: Window, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with OwnedFd(os.open(tmp_path / "file", os.O_RDONLY)) as fd:
        with pytest.raises(PermissionError):
            window.map(asks(0, 1, flags=1), fd.fileno())
        assert is_untouched(window)
        window.map(asks(0, 1), fd.fileno())
    assert window.read(0, 1) == CONTENT[:1]


@pytest.mark.parametrize(("page", "pages"), [(7, 2), (8, 1), (1 << 40, 1)])
def test_sh21_a_range_past_the_end_of_the_file_is_refused(window: Window, file: int, page: int, pages: int) -> None:
    with pytest.raises(RemoteProtocolError, match="passes the file's end") as caught:
        window.map(asks(0, pages, page=page), file)
    assert (caught.value.field, caught.value.limit) == ("fd_offset", len(CONTENT))
    assert is_untouched(window)


def test_sh21_sh25_a_truncated_file_gives_a_fault_and_no_signal(window: Window, file: int) -> None:
    before = signal.getsignal(signal.SIGBUS)
    window.map(asks(0, 4, flags=1), file)
    os.ftruncate(file, 2 * PAGE)
    assert window.read(0, 2 * PAGE) == CONTENT[: 2 * PAGE]
    for offset, size in ((2 * PAGE, 1), (0, 4 * PAGE), (2 * PAGE - 1, 2)):
        with pytest.raises(MemoryFault, match="the file was truncated"):
            window.read(offset, size)
    with pytest.raises(MemoryFault):
        window.write(3 * PAGE, b"x")
    assert signal.getsignal(signal.SIGBUS) is before
    os.ftruncate(file, 4 * PAGE)
    assert window.read(3 * PAGE, 2) == b"\0\0"


def test_sh26_the_quota_ends_mapping_and_unmapping_goes_on(window: Window, file: int) -> None:
    for place in range(8):
        window.map(asks(2 * place, 1), file)
    with pytest.raises(RemoteProtocolError, match="passes the device's quota of 8 live mappings") as caught:
        window.map(asks(1, 1), file)
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("mappings", 8, 8)
    window.unmap(asks(0, 1))
    window.map(asks(1, 1), file)


@pytest.mark.parametrize("half", HALVES)
def test_sh26_a_full_device_leaves_room_for_threads_and_memory(half: str) -> None:
    with using(half), OwnedFd(os.memfd_create("file")) as fd:
        os.ftruncate(fd.fileno(), 2 * PAGE)
        window = Window(0, 2 * (DEVICE_QUOTA + 1) * PAGE, new_quota("device", DEVICE_QUOTA))
        for at in range(DEVICE_QUOTA):
            window.map(Mmap(0, at % 2 * PAGE, 2 * at * PAGE, PAGE), fd.fileno())
        with pytest.raises(RemoteProtocolError, match="quota of 4096"):
            window.map(Mmap(0, 0, 2 * DEVICE_QUOTA * PAGE, PAGE), fd.fileno())
        thread = threading.Thread(target=bytearray, args=(64 << 20,))
        thread.start()
        thread.join()
        window.unmap(Mmap(0, 0, 0, PAGE))
        assert len(window.table) == window.quota.used == DEVICE_QUOTA - 1
        window.close()


def test_sh26_all_windows_of_a_process_share_its_quota() -> None:
    assert PROCESS.name == "process"
    assert 2 * PROCESS.limit < int(Path("/proc/sys/vm/max_map_count").read_text())


def test_sh30_the_fd_may_be_closed_at_once(window: Window) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    for place in range(8):
        with OwnedFd(os.memfd_create("file")) as fd:
            os.write(fd.fileno(), bytes([place]) * PAGE)
            window.map(asks(place, 1), fd.fileno())
    assert set(os.listdir("/proc/self/fd")) == fds
    assert [window.read(place * PAGE, 1)[0] for place in range(8)] == list(range(8))


def test_sh33_a_second_unmap_is_refused(window: Window, file: int) -> None:
    window.map(asks(0, 2), file)
    for request in (asks(0, 1), asks(1, 1), asks(0, 3)):
        with pytest.raises(RemoteProtocolError, match="is not one whole mapping"):
            window.unmap(request)
    assert window.unmap(asks(0, 2)) == Mapping(0, 2 * PAGE, 0, False)
    with pytest.raises(RemoteProtocolError, match="is not one whole mapping"):
        window.unmap(asks(0, 2))


@pytest.mark.parametrize("half", HALVES)
def test_sh45_many_fds_of_one_file_with_a_mode_each(half: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with using(half):
        window = Window(0, 64 * PAGE, new_quota("device", 64))
    for place in range(64):
        with OwnedFd(os.open(tmp_path / "file", os.O_RDWR)) as fd:
            window.map(Mmap(0, place % 8 * PAGE, place * PAGE, PAGE, place % 2), fd.fileno())
    assert modes(window.base, window.base + window.size) == [READ_ONLY, READ_WRITE] * 32
    assert window.read(0, 64 * PAGE) == CONTENT * 8
    window.close()


def test_sh46_a_huge_window_costs_nothing(file: int) -> None:
    window = Window(0, 1 << 40, new_quota("device", 1))
    window.map(Mmap(0, 0, (1 << 40) - PAGE, PAGE), file)
    assert window.read((1 << 40) - PAGE, 1) == CONTENT[:1]
    window.close()


def test_sh29_a_window_that_cannot_be_reserved_says_so() -> None:
    code = (
        "import resource; from vhostuser.memory import mapping\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: mapping.reserve(8 << 30)\n"
        "except OSError as error: print(error.errno, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{errno.ENOMEM} ")
    assert "cannot reserve 0x200000000 bytes of address space" in done.stdout


@pytest.mark.parametrize("half", HALVES)
def test_populate_maps_pages_ahead(half: str, file: int) -> None:
    with using(half):
        window = Window(0, 4 * PAGE, new_quota("device", 1), populate=True)
    window.map(Mmap(0, 0, 0, 4 * PAGE), file)
    assert window.read(0, 4 * PAGE) == CONTENT[: 4 * PAGE]
    window.close()


# Views


def test_sh24_a_view_wants_a_file_that_cannot_shrink(window: Window, file: int) -> None:
    window.map(asks(0, 2), file)
    with pytest.raises(MemoryFault, match="is not sealed against shrinking"):
        window.view(0, 4)
    assert bytes(window.view(PAGE - 2, 4, unsafe=True)) == CONTENT[PAGE - 2 : PAGE + 2]


@pytest.mark.parametrize("flags", [0, 1])
def test_sh24_a_view_of_a_sealed_file_survives_the_unmap(window: Window, file: int, flags: int) -> None:
    fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK)
    window.map(asks(0, 2, flags=flags), file)
    view = window.view(PAGE + 7, 9)
    window.unmap(asks(0, 2))
    assert is_untouched(window)
    assert view.readonly is not bool(flags)
    assert bytes(view) == CONTENT[PAGE + 7 : PAGE + 16]
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    os.pwrite(file, b"!", PAGE + 7)
    assert view[0] == ord("!")


def test_a_view_lies_within_one_mapping(window: Window, file: int) -> None:
    window.map(asks(0, 1), file)
    window.map(asks(1, 1), file)
    with pytest.raises(MemoryFault, match="is not within one mapping"):
        window.view(PAGE - 1, 2, unsafe=True)


def test_a_view_gives_its_pages_back(window: Window, file: int) -> None:
    window.map(asks(0, 1), file)
    inode = os.fstat(file).st_ino
    view = window.view(0, PAGE, unsafe=True)
    assert len([area for area in areas(0, 1 << 64) if area.inode == inode]) == 2
    del view
    assert len([area for area in areas(0, 1 << 64) if area.inode == inode]) == 1


# The kernel says no


def test_a_move_that_fails_leaves_the_reservation_whole(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = mapping.reserve(4 * PAGE)
    with monkeypatch.context() as patched:
        patched.setattr(mapping, "sys_mremap", lambda *_: mapping.FAILED)
        with pytest.raises(OSError, match="mremap"):
            mapping.place(base + PAGE, PAGE, file, 0, mmap.PROT_READ)
    assert modes(base, base + 4 * PAGE) == [RESERVED] * 4
    mapping.release(base, 4 * PAGE)
