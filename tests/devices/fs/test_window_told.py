"""Who is told that stores into the window could not be written: all who have the file open, each once (F35)."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax import owed
from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import Entry, Guest
from .windowed import PAGE


class Disk:
    """Takes no bytes while it is full."""

    full = True


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made, write = Disk(), CopiedFile.write

    def write_or_fail(file: CopiedFile, data: bytes, offset: int) -> None:
        if made.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data, offset)

    monkeypatch.setattr(CopiedFile, "write", write_or_fail)
    return made


@pytest.fixture
def guest(root: Path, window: CopyWindow, disk: Disk) -> Iterator[Guest]:
    for name in ("file", "other"):
        (root / name).write_bytes(b"A" * PAGE)
    with Guest(root, ShareOptions(dax_write=True), window=window) as made:
        yield made


def open_file(guest: Guest, name: bytes = b"file") -> Entry:
    entry = guest.lookup(name)
    return entry._replace(fh=guest.open(entry.nodeid, os.O_RDWR))


def store(guest: Guest, window: CopyWindow, file: Entry) -> None:
    """What the guest does by mmap."""
    window.setup(guest.share.file(file.nodeid), foffset=0, size=PAGE, moffset=0, writable=True)
    with mmap.mmap(window.memory.fileno(), PAGE) as seen:
        seen[:6] = b"stored"


def fsync(guest: Guest, file: Entry) -> None:
    guest.share.fsync(guest.call(file.nodeid, s.FsyncIn(file.fh, 0)))


def flush(guest: Guest, file: Entry) -> None:
    guest.share.flush(guest.call(file.nodeid, s.FlushIn(file.fh, 0)))


def syncfs(guest: Guest) -> None:
    guest.share.syncfs(guest.call(ROOT_ID, s.SyncfsIn(0)))


def told_once(guest: Guest, *files: Entry) -> None:
    """Each is told by its FSYNC, once."""
    for file in files:
        with fails(errno.ENOSPC):
            fsync(guest, file)
        fsync(guest, file)


def test_f35_a_release_takes_nobodys_error(guest: Guest, window: CopyWindow, disk: Disk, root: Path) -> None:
    mine, other = open_file(guest), open_file(guest)
    store(guest, window, mine)
    guest.release(other)
    disk.full = False
    told_once(guest, mine)
    assert (root / "file").read_bytes()[:6] == b"stored"


def test_f35_a_flush_takes_nobodys_error(guest: Guest, window: CopyWindow, disk: Disk) -> None:
    """Not even that of the same open file, which a process may have closed that has it by a fork."""
    mine, other = open_file(guest), open_file(guest)
    store(guest, window, mine)
    for file in (other, mine, mine):
        with fails(errno.ENOSPC):
            flush(guest, file)
    disk.full = False
    told_once(guest, mine, other)
    flush(guest, mine)


def test_f35_everybody_is_told_and_nobody_of_another_file(guest: Guest, window: CopyWindow, disk: Disk) -> None:
    files, other = [open_file(guest) for _ in range(3)], open_file(guest, b"other")
    store(guest, window, files[0])
    with fails(errno.ENOSPC):
        syncfs(guest)
    disk.full = False
    syncfs(guest)
    fsync(guest, other)
    told_once(guest, *files)


def test_f35_who_opens_it_later_is_told_what_nobody_was(guest: Guest, window: CopyWindow, disk: Disk) -> None:
    file = open_file(guest)
    store(guest, window, file)
    guest.release(file)
    disk.full = False
    told_once(guest, open_file(guest))
    fsync(guest, open_file(guest))


@pytest.mark.parametrize("how", ["made", "found"])
def test_f35_who_creates_it_is_told(guest: Guest, window: CopyWindow, disk: Disk, root: Path, how: str) -> None:
    name = "new" if how == "made" else "file"
    file = guest.create(name.encode())
    os.truncate(root / name, PAGE)
    store(guest, window, file)
    window.write_back()
    disk.full = False
    told_once(guest, file)


def test_f35_bytes_that_are_lost_are_an_error_of_all_who_had_it_open(
    guest: Guest, window: CopyWindow, disk: Disk, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed, "MOST_BYTES", 0)
    files = [open_file(guest), open_file(guest)]
    store(guest, window, files[0])
    with fails(errno.ENOSPC):
        window.remove([(0, PAGE)])
    disk.full = False
    told_once(guest, *files)
    fsync(guest, open_file(guest))
    assert (root / "file").read_bytes()[:6] == b"AAAAAA"


def test_f35_a_later_failure_is_told_again(guest: Guest, window: CopyWindow, disk: Disk) -> None:
    file = open_file(guest)
    store(guest, window, file)
    for _ in range(2):
        with fails(errno.ENOSPC):
            fsync(guest, file)
    disk.full = False
    fsync(guest, file)
