"""When a share asks the window to settle a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough import calls
from vhostuser.devices.fs.passthrough.calls import failed
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, AttrFlag, Fattr, FopenFlag

from .failing import fails
from .guest import Entry, Guest


class Window:
    """Notes what it is asked; serves what may not be written."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, int] | None]] = []
        self.changed: list[tuple[tuple[int, int], int, int]] = []
        self.seen: list[tuple[tuple[int, int], int, int]] = []
        self.fails = self.writable = False

    def before(self, key: tuple[int, int]) -> None:
        self.asked.append(("before", key))

    def after(self, key: tuple[int, int], start: int, end: int) -> None:
        self.changed.append((key, start, end))

    def refresh(self, key: tuple[int, int], size: int, mtime_ns: int) -> None:
        self.seen.append((key, size, mtime_ns))

    def write_back(self, key: tuple[int, int] | None = None) -> None:
        self.asked.append(("write back", key))
        if self.fails:
            raise failed(errno.ENOSPC)

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


BEFORE: dict[str, Callable[[Guest, Entry], object]] = {
    "READ": lambda guest, file: guest.read(file, 1),
    "WRITE": lambda guest, file: guest.write(file, b"x"),
    "SETATTR": lambda guest, file: guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=Fattr.SIZE, size=1))),
    "OPEN": lambda guest, file: guest.open(file.nodeid, os.O_RDWR | os.O_TRUNC),
    "FALLOCATE": lambda guest, file: guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 0, 9, 0))),
    "LSEEK": lambda guest, file: guest.share.lseek(guest.call(file.nodeid, s.LseekIn(file.fh, 0, os.SEEK_HOLE))),
    "COPY_FILE_RANGE": lambda guest, file: guest.share.copy_file_range(
        guest.call(file.nodeid, s.CopyFileRangeIn(file.fh, 0, file.nodeid, file.fh, 10, 1, 0))
    ),
}
CHANGES: dict[str, tuple[Callable[[Guest, Entry], object], int, int]] = {
    "WRITE": (lambda guest, file: guest.write(file, b"xyz"), 0, 3),
    "SETATTR": (BEFORE["SETATTR"], 1, 1),
    "OPEN": (BEFORE["OPEN"], 0, 0),
    "FALLOCATE": (BEFORE["FALLOCATE"], 0, 9),
    "COPY_FILE_RANGE": (BEFORE["COPY_FILE_RANGE"], 10, 11),
}
"""What changes a file, and which bytes of it."""
LOOKS: dict[str, Callable[[Guest, Entry], object]] = {
    "GETATTR": lambda guest, file: guest.getattr(file.nodeid),
    "LOOKUP": lambda guest, file: guest.lookup(b"file"),
    "OPEN": lambda guest, file: guest.open(file.nodeid, os.O_RDONLY),
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


@pytest.mark.parametrize("request_", BEFORE)
def test_the_window_settles_a_file_before_it_is_read_or_changed(
    guest: Guest, root: Path, window: Window, file: Entry, request_: str
) -> None:
    window.writable = True
    guest.share.window = window
    BEFORE[request_](guest, file)
    found = (root / "file").stat()
    assert set(window.asked) == {("before", (found.st_dev, found.st_ino))}


@pytest.mark.parametrize("request_", CHANGES)
def test_the_window_is_told_what_was_changed(guest: Guest, root: Path, window: Window, file: Entry, request_: str) -> None:
    window.changed.clear()
    act, start, end = CHANGES[request_]
    act(guest, file)
    found = (root / "file").stat()
    assert window.changed == [((found.st_dev, found.st_ino), start, end)]


@pytest.mark.parametrize("request_", LOOKS)
def test_the_window_is_told_how_a_file_is(guest: Guest, root: Path, window: Window, file: Entry, request_: str) -> None:
    window.seen.clear()
    LOOKS[request_](guest, file)
    found = (root / "file").stat()
    assert window.seen == [((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)]
    assert window.asked == []


@pytest.mark.parametrize("request_", WRITE_BACK)
def test_the_window_writes_a_file_back(guest: Guest, root: Path, window: Window, file: Entry, request_: str) -> None:
    WRITE_BACK[request_](guest, file)
    found = (root / "file").stat()
    assert window.asked == [("write back", (found.st_dev, found.st_ino))]


@pytest.mark.parametrize("request_", WRITE_BACK)
def test_what_could_not_be_written_back_is_told(guest: Guest, window: Window, file: Entry, request_: str) -> None:
    window.fails = True
    with fails(errno.ENOSPC):
        WRITE_BACK[request_](guest, file)


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
    with fails(errno.ENOSPC):
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
