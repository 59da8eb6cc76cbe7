"""Names and inodes: what a guest may name, and what it may not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import WILD, Guest

BAD_NAMES = [b"", b".", b"..", b"a/b", b"/etc/passwd", b"../secret", b"a\0b"]
LONG_NAMES = [b"x" * 256, b"x" * 4096]
ABSENT = 999

BY_NAME: dict[str, Callable[[Guest, bytes], object]] = {
    "LOOKUP": lambda guest, name: guest.lookup(name),
    "CREATE": lambda guest, name: guest.create(name),
    "MKNOD": lambda guest, name: guest.mknod(name, 0o100644),
    "MKDIR": lambda guest, name: guest.mkdir(name),
    "SYMLINK": lambda guest, name: guest.symlink(name, b"target"),
    "LINK": lambda guest, name: guest.link(guest.lookup(b"there").nodeid, name),
    "UNLINK": lambda guest, name: guest.unlink(name),
    "RMDIR": lambda guest, name: guest.rmdir(name),
    "RENAME old": lambda guest, name: guest.rename(name, b"new"),
    "RENAME new": lambda guest, name: guest.rename(b"there", name),
    "RENAME2 old": lambda guest, name: guest.rename2(name, b"new", 1),
    "RENAME2 new": lambda guest, name: guest.rename2(b"there", name, 1),
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("request_", BY_NAME)
def test_f01_what_is_no_name_is_refused(guest: Guest, root: Path, request_: str, name: bytes) -> None:
    (root / "there").touch()
    with fails(errno.EINVAL):
        BY_NAME[request_](guest, name)
    assert os.listdir(root) == ["there"]
    assert sorted(os.listdir(root.parent)) == ["secret", "shared"]


@pytest.mark.parametrize("name", LONG_NAMES, ids=len)
@pytest.mark.parametrize("request_", BY_NAME)
def test_f01_long_names_are_refused(guest: Guest, root: Path, request_: str, name: bytes) -> None:
    (root / "there").touch()
    with fails(errno.ENAMETOOLONG):
        BY_NAME[request_](guest, name)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x01", b"\xc3", b" ", b"...", b"x" * 255])
def test_f01_other_names_round_trip(guest: Guest, root: Path, name: bytes) -> None:
    guest.create(name)
    assert guest.lookup(name).attr.ino == os.stat(os.fsencode(root) + b"/" + name).st_ino
    assert name in [each for each, _ in guest.readdir(guest.opendir())]
    guest.unlink(name)
    assert os.listdir(root) == []


def test_f02_dot_dot_leads_nowhere(guest: Guest) -> None:
    inside = guest.mkdir(b"inside").nodeid
    for nodeid in (ROOT_ID, inside):
        with fails(errno.EINVAL):
            guest.lookup(b"..", nodeid)


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../..", b"../secret", b"/proc/self/root", b"loop"])
def test_f03_symlinks_are_not_followed(guest: Guest, root: Path, target: bytes) -> None:
    made = guest.symlink(b"loop", target)
    found = guest.lookup(b"loop")
    assert found.nodeid == made.nodeid
    assert found.attr.mode & 0o170000 == 0o120000
    assert guest.share.readlink(guest.call(found.nodeid, None)) == target
    with fails(errno.EBADF, errno.ELOOP):
        guest.open(found.nodeid)
    with fails(errno.ENOTDIR):
        guest.lookup(b"secret", found.nodeid)
    with fails(errno.ENOTDIR):
        guest.opendir(found.nodeid)


def test_f03_a_chain_of_symlinks_is_that_many_inodes(guest: Guest) -> None:
    for number in range(40):
        guest.symlink(b"%d" % number, b"%d" % (number + 1))
    assert len({guest.lookup(b"%d" % number).nodeid for number in range(40)}) == 40


def test_f03_create_does_not_follow_a_symlink(guest: Guest, root: Path) -> None:
    (root / "link").symlink_to("../made")
    with fails(errno.EBADF, errno.ELOOP):
        guest.create(b"link", os.O_RDWR)
    assert not (root.parent / "made").exists()


def test_readlink_is_for_symlinks(guest: Guest) -> None:
    for nodeid in (ROOT_ID, guest.create(b"file").nodeid):
        with fails(errno.EINVAL):
            guest.share.readlink(guest.call(nodeid, None))


def test_an_inode_has_one_nodeid(guest: Guest, root: Path) -> None:
    (root / "a").touch()
    (root / "b").hardlink_to(root / "a")
    assert guest.lookup(b"a").nodeid == guest.lookup(b"b").nodeid


def test_lookup_says_enoent(guest: Guest) -> None:
    with fails(errno.ENOENT):
        guest.lookup(b"absent")


def test_lookup_in_a_file_says_enotdir(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    with fails(errno.ENOTDIR):
        guest.lookup(b"x", guest.lookup(b"file").nodeid)


def test_f17_forget_counts(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    nodeid = guest.lookup(b"file").nodeid
    assert guest.lookup(b"file").nodeid == nodeid
    guest.forget(nodeid)
    guest.getattr(nodeid)
    guest.forget(nodeid)
    with fails(errno.EBADF):
        guest.getattr(nodeid)
    assert guest.lookup(b"file").nodeid != nodeid


def test_f17_forget_saturates(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    nodeid = guest.lookup(b"file").nodeid
    guest.forget(nodeid, WILD)
    guest.forget(nodeid, WILD)
    with fails(errno.EBADF):
        guest.getattr(nodeid)
    assert guest.lookup(b"file").nodeid > nodeid


@pytest.mark.parametrize("nodeid", [0, ABSENT, WILD])
def test_f17_forget_of_no_inode_is_ignored(guest: Guest, nodeid: int) -> None:
    guest.forget(nodeid, WILD)
    guest.getattr(ROOT_ID)


def test_f17_the_root_is_never_forgotten(guest: Guest) -> None:
    for _ in range(3):
        guest.forget(ROOT_ID, WILD)
    guest.mkdir(b"still")


def test_f17_batch_forget(guest: Guest, root: Path) -> None:
    nodeids = [guest.mkdir(b"%d" % number).nodeid for number in range(10)]
    data = b"".join(s.ForgetOne(nodeid, 1).pack() for nodeid in [*nodeids, ROOT_ID, ABSENT])
    guest.share.batch_forget(guest.call(0, s.BatchForgetIn(12), data=data))
    for nodeid in nodeids:
        with fails(errno.EBADF):
            guest.getattr(nodeid)
    guest.getattr(ROOT_ID)


@pytest.mark.parametrize("count", [0, 2, (1 << 32) - 1])
def test_f17_batch_forget_has_as_many_as_it_says(guest: Guest, count: int) -> None:
    nodeid = guest.mkdir(b"kept").nodeid
    with fails(errno.EINVAL):
        guest.share.batch_forget(guest.call(0, s.BatchForgetIn(count), data=s.ForgetOne(nodeid, 1).pack()))
    guest.getattr(nodeid)


BY_NODEID: dict[str, Callable[[Guest, int], object]] = {
    "LOOKUP": lambda guest, nodeid: guest.lookup(b"x", nodeid),
    "GETATTR": lambda guest, nodeid: guest.getattr(nodeid),
    "SETATTR": lambda guest, nodeid: guest.share.setattr(guest.call(nodeid, s.SetattrIn())),
    "OPEN": lambda guest, nodeid: guest.open(nodeid),
    "OPENDIR": lambda guest, nodeid: guest.opendir(nodeid),
    "CREATE": lambda guest, nodeid: guest.create(b"x", parent=nodeid),
    "MKDIR": lambda guest, nodeid: guest.mkdir(b"x", parent=nodeid),
    "LINK": lambda guest, nodeid: guest.link(nodeid, b"x"),
    "LINK to": lambda guest, nodeid: guest.link(ROOT_ID, b"x", nodeid),
    "UNLINK": lambda guest, nodeid: guest.unlink(b"x", nodeid),
    "RENAME": lambda guest, nodeid: guest.rename(b"x", b"y", nodeid),
    "RENAME to": lambda guest, nodeid: guest.rename(b"x", b"y", newdir=nodeid),
    "READLINK": lambda guest, nodeid: guest.share.readlink(guest.call(nodeid, None)),
    "STATFS": lambda guest, nodeid: guest.share.statfs(guest.call(nodeid, None)),
    "SYNCFS": lambda guest, nodeid: guest.share.syncfs(guest.call(nodeid, s.SyncfsIn(0))),
    "STATX": lambda guest, nodeid: guest.share.statx(guest.call(nodeid, s.StatxIn(0, 0, 0, 0xFFF))),
    "ACCESS": lambda guest, nodeid: guest.share.access(guest.call(nodeid, s.AccessIn(4))),
    "file": lambda guest, nodeid: guest.share.file(nodeid),
}


@pytest.mark.parametrize("request_", BY_NODEID)
def test_f19_a_forgotten_nodeid_is_no_other_file(guest: Guest, root: Path, request_: str) -> None:
    nodeid = guest.mkdir(b"gone").nodeid
    guest.forget(nodeid)
    guest.mkdir(b"new")
    for used in (nodeid, ABSENT, 0, WILD):
        with fails(errno.EBADF):
            BY_NODEID[request_](guest, used)


def test_f19_a_nodeid_of_an_earlier_session_is_none(guest: Guest) -> None:
    nodeid = guest.mkdir(b"old").nodeid
    guest.share.reset()
    with fails(errno.EBADF):
        guest.getattr(nodeid)
    assert guest.lookup(b"old").nodeid > nodeid
    with fails(errno.EBADF):
        guest.getattr(nodeid)
