"""When a share asks the window to settle a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough.calls import failed
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, AttrFlag, Fattr

from .failing import fails
from .guest import Entry, Guest


class Window:
    """Notes what it is asked; serves what may not be written."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, int] | None]] = []
        self.fails = False

    def before(self, key: tuple[int, int]) -> None:
        self.asked.append(("before", key))

    def write_back(self, key: tuple[int, int] | None = None) -> None:
        self.asked.append(("write back", key))
        if self.fails:
            raise failed(errno.ENOSPC)

    def serves(self, *, writable_file: bool) -> bool:
        return not writable_file


@pytest.fixture
def window() -> Window:
    return Window()


@pytest.fixture
def guest(root: Path, window: Window) -> Iterator[Guest]:
    with Guest(root, window=window) as made:
        yield made


BEFORE: dict[str, Callable[[Guest, Entry], object]] = {
    "READ": lambda guest, file: guest.read(file, 1),
    "WRITE": lambda guest, file: guest.write(file, b"x"),
    "GETATTR": lambda guest, file: guest.getattr(file.nodeid),
    "LOOKUP": lambda guest, file: guest.lookup(b"file"),
    "STATX": lambda guest, file: guest.share.statx(guest.call(file.nodeid, s.StatxIn(0, 0, 0, 0xFFF))),
    "SETATTR": lambda guest, file: guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=Fattr.SIZE, size=1))),
    "OPEN": lambda guest, file: guest.open(file.nodeid, os.O_RDWR | os.O_TRUNC),
    "FALLOCATE": lambda guest, file: guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 0, 9, 0))),
    "LSEEK": lambda guest, file: guest.share.lseek(guest.call(file.nodeid, s.LseekIn(file.fh, 0, os.SEEK_HOLE))),
    "COPY_FILE_RANGE": lambda guest, file: guest.share.copy_file_range(
        guest.call(file.nodeid, s.CopyFileRangeIn(file.fh, 0, file.nodeid, file.fh, 10, 1, 0))
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


@pytest.mark.parametrize("request_", BEFORE)
def test_the_window_settles_a_file_before_it_is_looked_at(
    guest: Guest, root: Path, window: Window, file: Entry, request_: str
) -> None:
    BEFORE[request_](guest, file)
    found = (root / "file").stat()
    assert set(window.asked) == {("before", (found.st_dev, found.st_ino))}


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
