"""What the guest stored into the window, and what it changes by requests: the later one stays, whoever syncs in between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax.copy import CopyWindow
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.fuse import structs as s

from .guest import Entry, Guest, Source

PAGE = 4096


class Syncing(Source):
    """Gives what is written; as soon as the file has it another thread of the guest syncs."""

    def __init__(self, data: bytes, window: CopyWindow) -> None:
        super().__init__(data)
        self._window = window

    def pwritev(self, fd: int, size: int, offset: int) -> int:
        done = super().pwritev(fd, size, offset)
        self._window.write_back()
        return done


@pytest.fixture
def guest(root: Path, window: CopyWindow) -> Iterator[Guest]:
    (root / "file").write_bytes(b"A" * PAGE)
    (root / "source").write_bytes(b"S" * PAGE)
    with Guest(root, ShareOptions(dax_write=True), window=window) as made:
        yield made


@pytest.fixture
def stored(guest: Guest, window: CopyWindow) -> Entry:
    """A file, open to be written, of whose bytes some were stored into the window."""
    entry = guest.lookup(b"file")
    file = guest.share.file(entry.nodeid)
    window.setup(file, foffset=0, size=PAGE, moffset=0, writable=True)
    with mmap.mmap(window.memory.fileno(), PAGE) as seen:
        seen[100:110] = b"0123456789"
    return entry._replace(fh=guest.open(entry.nodeid, os.O_RDWR))


def test_a_write_is_later_than_what_was_stored_before_it(
    guest: Guest, window: CopyWindow, root: Path, stored: Entry
) -> None:
    given = s.WriteIn(stored.fh, 104, 4, 0, 0, 0)
    guest.share.write(guest.call(stored.nodeid, given), Syncing(b"----", window))
    guest.share.fsync(guest.call(stored.nodeid, s.FsyncIn(stored.fh, 0)))
    assert (root / "file").read_bytes()[98:112] == b"AA0123----89AA"


def test_a_copy_is_later_than_what_was_stored_before_it(
    guest: Guest, window: CopyWindow, root: Path, stored: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def copy_and_sync(source: int, target: int, size: int, at: int, to: int) -> int:
        done = copy(source, target, size, at, to)
        window.write_back()
        return done

    source = guest.lookup(b"source")
    fh = guest.open(source.nodeid)
    monkeypatch.setattr(os, "copy_file_range", copy_and_sync)
    given = s.CopyFileRangeIn(fh, 0, stored.nodeid, stored.fh, 104, 4, 0)
    assert guest.share.copy_file_range(guest.call(source.nodeid, given)).size == 4
    guest.share.fsync(guest.call(stored.nodeid, s.FsyncIn(stored.fh, 0)))
    assert (root / "file").read_bytes()[98:112] == b"AA0123SSSS89AA"
