"""What changes directories, as the host's kernel has it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import Guest

EXCHANGE, NOREPLACE = 2, 1


@pytest.mark.parametrize("type", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, stat.S_IFLNK, 0o170000])
def test_f09_no_devices_are_made(guest: Guest, root: Path, type: int) -> None:
    with fails(errno.EPERM):
        guest.mknod(b"it", type | 0o666, os.makedev(1, 3))
    assert os.listdir(root) == []


@pytest.mark.parametrize("type", [0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_f09_other_files_are_made(guest: Guest, root: Path, type: int) -> None:
    made = guest.mknod(b"it", type | 0o4755)
    assert made.attr.mode == (type or stat.S_IFREG) | 0o4755
    assert made.nodeid == guest.lookup(b"it").nodeid


def test_wild_modes_are_cut(guest: Guest) -> None:
    assert guest.mknod(b"file", 0xFFFF_0000 | stat.S_IFREG | 0o644).attr.mode == stat.S_IFREG | 0o644
    assert guest.mkdir(b"directory", 0xFFFF_0000 | 0o755).attr.mode == stat.S_IFDIR | 0o755
    assert guest.create(b"created", mode=0xFFFF_FFFF).attr.mode == stat.S_IFREG | 0o7777


def test_mkdir_and_rmdir(guest: Guest, root: Path) -> None:
    made = guest.mkdir(b"a", 0o1750)
    assert made.attr.mode == stat.S_IFDIR | 0o1750
    guest.mkdir(b"b", parent=made.nodeid)
    with fails(errno.ENOTEMPTY):
        guest.rmdir(b"a")
    with fails(errno.EISDIR, errno.EPERM):
        guest.unlink(b"a")
    (root / "a" / "b").rmdir()
    guest.rmdir(b"a")
    with fails(errno.ENOENT):
        guest.rmdir(b"a")


def test_link_gives_one_inode_two_names(guest: Guest, root: Path) -> None:
    file = guest.create(b"a")
    linked = guest.link(file.nodeid, b"b")
    assert linked.nodeid == file.nodeid
    assert linked.attr.nlink == 2
    with fails(errno.EEXIST):
        guest.link(file.nodeid, b"b")


def test_link_of_a_symlink_is_the_symlink(guest: Guest, root: Path) -> None:
    made = guest.symlink(b"a", b"../secret")
    assert guest.link(made.nodeid, b"b").nodeid == made.nodeid
    assert os.readlink(root / "b") == "../secret"


def test_f23_link_of_a_directory_is_refused(guest: Guest) -> None:
    made = guest.mkdir(b"a")
    for nodeid in (ROOT_ID, made.nodeid):
        with fails(errno.EPERM):
            guest.link(nodeid, b"b")


def test_f23_rename_over_itself_does_nothing(guest: Guest, root: Path) -> None:
    guest.create(b"a")
    guest.rename(b"a", b"a")
    assert os.listdir(root) == ["a"]


def test_f23_rename_into_its_own_child_is_refused(guest: Guest) -> None:
    made = guest.mkdir(b"a")
    with fails(errno.EINVAL):
        guest.rename(b"a", b"b", newdir=made.nodeid)


def test_rename_replaces(guest: Guest, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    guest.rename(b"a", b"b")
    assert (root / "b").read_bytes() == b"a"
    assert os.listdir(root) == ["b"]


def test_rename2_replaces_nothing_or_exchanges(guest: Guest, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    with fails(errno.EEXIST):
        guest.rename2(b"a", b"b", NOREPLACE)
    guest.rename2(b"a", b"b", EXCHANGE)
    assert (root / "b").read_bytes() == b"a"
    with fails(errno.ENOENT):
        guest.rename2(b"a", b"c", EXCHANGE)
    guest.rename2(b"a", b"c", NOREPLACE)
    assert sorted(os.listdir(root)) == ["b", "c"]


@pytest.mark.parametrize("flags", [3, 4, 5, 6, 8, 1 << 31, (1 << 32) - 1])
def test_f23_unknown_flags_are_refused(guest: Guest, root: Path, flags: int) -> None:
    (root / "a").touch()
    with fails(errno.EINVAL):
        guest.rename2(b"a", b"b", flags)
    assert os.listdir(root) == ["a"]


def test_f40_a_root_that_is_deleted_is_empty(guest: Guest, root: Path) -> None:
    root.rmdir()
    with fails(errno.ENOENT):
        guest.lookup(b"x")
    with fails(errno.ENOENT):
        guest.mkdir(b"x")
    assert guest.getattr(ROOT_ID).nlink == 0


def test_f40_a_root_may_be_a_file(root: Path) -> None:
    (root / "file").write_bytes(b"alone")
    with Guest(root / "file") as guest:
        assert guest.getattr(ROOT_ID).size == 5
        with fails(errno.ENOTDIR):
            guest.lookup(b"x")
        with fails(errno.ENOTDIR):
            guest.opendir()
        guest.open(ROOT_ID)
