"""A host that changes, or fails: what the guest is told is true."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import Guest


def test_f35_a_file_that_was_replaced_is_another_inode(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"old")
    old = guest.lookup(b"file")
    (root / "new").write_bytes(b"newer")
    (root / "new").rename(root / "file")
    new = guest.lookup(b"file")
    assert new.nodeid != old.nodeid
    assert guest.read(new._replace(fh=guest.open(new.nodeid)), 9) == b"newer"


def test_f35_a_file_that_was_deleted(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    guest.lookup(b"file")
    (root / "file").unlink()
    with fails(errno.ENOENT):
        guest.lookup(b"file")
    with fails(errno.ENOENT):
        guest.unlink(b"file")


def test_f35_attributes_are_never_old(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    file = guest.lookup(b"file")
    (root / "file").chmod(0)
    os.truncate(root / "file", 7)
    assert guest.lookup(b"file").attr.mode & 0o777 == 0
    assert guest.getattr(file.nodeid).size == 7


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_f35_errors_of_the_host_are_told_once(guest: Guest, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = guest.create(b"file")
    call, real, failures = guest.call(file.nodeid, s.FsyncIn(file.fh, 0)), os.fsync, [number]

    def fsync(fd: int) -> None:
        if failures:
            raise OSError(failures.pop(), "")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with fails(number):
        guest.share.fsync(call)
    guest.share.fsync(call)


def test_f07_a_device_is_not_opened() -> None:
    """Even one that is harmless, and that root may open."""
    with Guest(Path("/dev")) as guest:
        nodeid = guest.lookup(b"null").nodeid
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with fails(errno.EBADF):
                guest.open(nodeid, flags)


def test_f40_a_root_that_was_moved_is_still_the_root(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    root.rename(root.parent / "moved")
    guest.lookup(b"file")
    with fails(errno.EINVAL):
        guest.lookup(b"..")
    guest.getattr(ROOT_ID)
