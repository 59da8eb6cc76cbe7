"""What a share tells the window of its files, and when."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.devices.fs.failures import Failures
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough import calls
from vhostuser.devices.fs.passthrough.calls import failed
from vhostuser.devices.fs.passthrough.files import OFFSET_MAX
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, AttrFlag, Fattr, FopenFlag

from .failing import fails
from .guest import Entry, Guest


class Window:
    """Notes what it is asked; serves what may not be written."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, int] | None]] = []
        self.fails = self.writable = False
        self.failures = Failures()

    def before(self, key: tuple[int, int], start: int, end: int) -> int:
        self.asked.append((f"before {start} {end}", key))
        return errno.ENOSPC if self.fails else 0

    def after(self, key: tuple[int, int], start: int, end: int) -> None:
        self.asked.append((f"after {start} {end}", key))

    @contextmanager
    def shrinking(self, key: tuple[int, int], size: int) -> Iterator[None]:
        self.asked.append((f"shrinking {size}", key))
        yield

    def refresh(self, key: tuple[int, int], size: int, mtime_ns: int) -> None:
        self.asked.append((f"seen {size}", key))

    def write_back(self, key: tuple[int, int] | None = None) -> None:
        self.asked.append(("write back", key))
        if self.fails:
            self.failures.add(key or (0, 0), errno.ENOSPC)

    def serves(self, *, writable_file: bool) -> bool:
        return self.writable or not writable_file


@pytest.fixture
def window() -> Window:
    return Window()


@pytest.fixture
def guest(root: Path, window: Window, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.setattr(calls, "file_system", lambda fd: 0xEF53)
    with Guest(root, window=window) as made:
        yield made


ASKED: dict[str, tuple[list[str], Callable[[Guest, Entry], object]]] = {
    "READ": (["before 0 1"], lambda guest, file: guest.read(file, 1)),
    "WRITE": (["before 3 6", "after 3 6"], lambda guest, file: guest.write(file, b"xyz", 3)),
    "GETATTR": (["seen 10"], lambda guest, file: guest.getattr(file.nodeid)),
    "SETATTR of the mode": (
        ["seen 10"],
        lambda guest, file: guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=Fattr.MODE, mode=0o600))),
    ),
    "STATX": (["seen 10"], lambda guest, file: guest.share.statx(guest.call(file.nodeid, s.StatxIn(sx_mask=0x7FF)))),
    "LOOKUP": (["seen 10"], lambda guest, file: guest.lookup(b"file")),
    "SETATTR": (
        ["before 1 1", "shrinking 1", "after 1 1", "seen 1"],
        lambda guest, file: guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=Fattr.SIZE, size=1))),
    ),
    "OPEN": (["seen 10"], lambda guest, file: guest.open(file.nodeid)),
    "OPEN, O_TRUNC": (
        ["before 0 0", "shrinking 0", "after 0 0"],
        lambda guest, file: guest.open(file.nodeid, os.O_RDWR | os.O_TRUNC),
    ),
    "FALLOCATE": (
        ["before 4 13", "after 13 13"],
        lambda guest, file: guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 4, 9, 0))),
    ),
    "FALLOCATE of a hole": (
        ["before 4 13", "after 4 13"],
        lambda guest, file: guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 4, 9, 3))),
    ),
    "SETATTR of times": (
        [f"before 0 {OFFSET_MAX}", "seen 10"],
        lambda guest, file: guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=Fattr.MTIME, mtime=1))),
    ),
    "LSEEK": (
        [f"before 0 {OFFSET_MAX}"],
        lambda guest, file: guest.share.lseek(guest.call(file.nodeid, s.LseekIn(file.fh, 0, os.SEEK_HOLE))),
    ),
    "COPY_FILE_RANGE": (
        ["before 2 102", "before 12 112", "after 12 20"],
        lambda guest, file: guest.share.copy_file_range(
            guest.call(file.nodeid, s.CopyFileRangeIn(file.fh, 2, file.nodeid, file.fh, 12, 100, 0))
        ),
    ),
}
WRITE_BACK: dict[str, Callable[[Guest, Entry], object]] = {
    "FSYNC": lambda guest, file: guest.share.fsync(guest.call(file.nodeid, s.FsyncIn(file.fh, 0))),
    "FLUSH": lambda guest, file: guest.share.flush(guest.call(file.nodeid, s.FlushIn(file.fh, 0))),
    "RELEASE": lambda guest, file: guest.release(file),
}


@pytest.fixture
def file(guest: Guest, window: Window) -> Entry:
    made = guest.create(b"file")
    guest.write(made, b"0123456789")
    window.asked.clear()
    return made


@pytest.mark.parametrize("request_", ASKED)
def test_the_window_hears_of_a_file_that_is_read_or_changed(
    guest: Guest, root: Path, window: Window, file: Entry, request_: str
) -> None:
    asked, request = ASKED[request_]
    request(guest, file)
    found = (root / "file").stat()
    assert window.asked == [(each, (found.st_dev, found.st_ino)) for each in asked]


@pytest.mark.parametrize("request_", WRITE_BACK)
def test_the_window_writes_a_file_back(guest: Guest, root: Path, window: Window, file: Entry, request_: str) -> None:
    WRITE_BACK[request_](guest, file)
    found = (root / "file").stat()
    assert window.asked == [("write back", (found.st_dev, found.st_ino))]


@pytest.mark.parametrize("request_", ["FSYNC", "FLUSH"])
def test_what_could_not_be_written_back_is_told(guest: Guest, window: Window, file: Entry, request_: str) -> None:
    window.fails = True
    with fails(errno.ENOSPC):
        WRITE_BACK[request_](guest, file)


@pytest.mark.parametrize("request_", ["READ", "LSEEK", "COPY_FILE_RANGE"])
def test_who_reads_is_not_given_older_bytes_than_were_stored(
    guest: Guest, window: Window, file: Entry, request_: str
) -> None:
    window.fails = True
    with fails(errno.ENOSPC):
        ASKED[request_][1](guest, file)


@pytest.mark.parametrize("request_", ["WRITE", "SETATTR", "OPEN, O_TRUNC", "FALLOCATE", "SETATTR of times"])
def test_who_changes_a_file_is_not_refused_for_what_could_not_be_written(
    guest: Guest, window: Window, file: Entry, request_: str
) -> None:
    window.fails = True
    ASKED[request_][1](guest, file)


@pytest.mark.parametrize("writable", [True, False])
def test_flush_is_asked_for_if_the_guest_writes_to_the_window(
    guest: Guest, window: Window, file: Entry, writable: bool
) -> None:
    window.writable = writable
    guest.share.window = window
    told = s.OpenOut.unpack(guest.share.open(guest.call(file.nodeid, s.OpenIn(0, 0)))).open_flags
    assert told == (0 if writable else FopenFlag.NOFLUSH)


def test_syncfs_writes_all_back(guest: Guest, window: Window) -> None:
    guest.share.syncfs(guest.call(ROOT_ID, s.SyncfsIn(0)))
    assert window.asked == [("write back", None)]


def test_a_file_that_is_released_is_closed_even_so(guest: Guest, window: Window, file: Entry) -> None:
    window.fails = True
    guest.release(file)
    with fails(errno.EBADF):
        guest.release(file)


@pytest.mark.parametrize("readonly", [True, False])
def test_regular_files_that_are_mapped_say_so(root: Path, window: Window, readonly: bool) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    with Guest(root, ShareOptions(readonly=readonly), window=window) as guest:
        assert guest.lookup(b"file").attr.flags == (AttrFlag.DAX if readonly else 0)
        assert guest.lookup(b"directory").attr.flags == 0
        assert guest.getattr(guest.lookup(b"file").nodeid).flags == (AttrFlag.DAX if readonly else 0)
        guest.share.window = None
        assert guest.lookup(b"file").attr.flags == 0


def test_a_lookup_that_fails_so_counts_none(guest: Guest, window: Window, file: Entry) -> None:
    def fail(key: tuple[int, int], size: int, mtime_ns: int) -> None:
        raise failed(errno.EIO)

    window.refresh = fail  # type: ignore[method-assign]  # as a file that can't be read
    with fails(errno.EIO):
        guest.lookup(b"file")
    guest.forget(file.nodeid)
    guest.share.window = None
    with fails(errno.EBADF):
        guest.getattr(file.nodeid)


def test_what_the_window_serves_is_asked_when_a_session_begins(guest: Guest, window: Window, file: Entry) -> None:
    assert guest.getattr(file.nodeid).flags == 0
    window.writable = True
    guest.share.agreed = 1
    assert guest.getattr(file.nodeid).flags == AttrFlag.DAX
