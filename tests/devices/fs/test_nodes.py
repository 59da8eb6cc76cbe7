"""Attributes, the file system, ranges and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest

from vhostuser import _native
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough.attributes import Attributes
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, Fattr, LockFlag

from .failing import fails
from .guest import WILD, Entry, Guest

END = (1 << 63) - 1


def setattr_(guest: Guest, nodeid: int, **fields: int) -> s.Attr:
    answer = s.AttrOut.unpack(guest.share.setattr(guest.call(nodeid, s.SetattrIn(**fields))))
    return s.Attr.unpack(answer.attr)


def test_attributes_are_those_of_the_host(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"x" * 5000)
    os.utime(root / "file", ns=(1_000_000_001, -1_500_000_000))
    attr, found = guest.lookup(b"file").attr, (root / "file").stat()
    assert (attr.ino, attr.size, attr.blocks, attr.mode) == (found.st_ino, 5000, found.st_blocks, found.st_mode)
    assert (attr.nlink, attr.uid, attr.gid, attr.blksize) == (1, found.st_uid, found.st_gid, found.st_blksize)
    assert (attr.atime, attr.atimensec) == (1, 1)
    assert (attr.mtime - (1 << 64), attr.mtimensec) == (-2, 500_000_000)


def test_the_number_of_a_device_is_told(guest: Guest, root: Path) -> None:
    try:
        os.mknod(root / "null", 0o20666, os.makedev(1, 300))
    except PermissionError:
        return
    assert guest.lookup(b"null").attr.rdev == (300 & 0xFF) | 1 << 8 | (300 & ~0xFF) << 12


def test_setattr_changes_what_it_names(guest: Guest) -> None:
    file = guest.create(b"file", mode=0o644)
    guest.write(file, b"12345")
    assert setattr_(guest, file.nodeid, valid=Fattr.MODE, mode=0o100600, size=1).mode == 0o100600
    assert setattr_(guest, file.nodeid, valid=Fattr.SIZE, size=3).size == 3
    assert setattr_(guest, file.nodeid, valid=Fattr.SIZE | Fattr.FH, size=10, fh=file.fh).size == 10
    assert guest.read(file, 99) == b"123" + bytes(7)


def test_setattr_sets_times(guest: Guest) -> None:
    file = guest.create(b"file").nodeid
    past = setattr_(guest, file, valid=Fattr.ATIME | Fattr.MTIME, atime=5, atimensec=6, mtime=(1 << 64) - 7, mtimensec=8)
    assert (past.atime, past.atimensec, past.mtime, past.mtimensec) == (5, 6, (1 << 64) - 7, 8)
    now = setattr_(guest, file, valid=Fattr.MTIME | Fattr.MTIME_NOW)
    assert (now.atime, now.mtime) == (5, now.ctime)
    with fails(errno.EINVAL):
        setattr_(guest, file, valid=Fattr.ATIME, atimensec=1_000_000_000)


def test_setattr_of_a_symlink_is_its_own(guest: Guest, root: Path) -> None:
    (root / "target").touch()
    link = guest.symlink(b"link", b"target").nodeid
    before = (root / "target").stat()
    assert setattr_(guest, link, valid=Fattr.MTIME, mtime=5).mtime == 5
    with fails(errno.EOPNOTSUPP):
        setattr_(guest, link, valid=Fattr.MODE, mode=0)
    assert (root / "target").stat() == before


@pytest.mark.parametrize("size", [1 << 63, WILD])
def test_f39_wild_sizes_are_refused(guest: Guest, size: int) -> None:
    with fails(errno.EINVAL):
        setattr_(guest, guest.create(b"file").nodeid, valid=Fattr.SIZE, size=size)
    with fails(errno.EISDIR):
        setattr_(guest, ROOT_ID, valid=Fattr.SIZE, size=0)


def test_statx_says_more(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    file = guest.lookup(b"file").nodeid
    answer = guest.share.statx(guest.call(file, s.StatxIn(0, 0, 0, 0xFFF)))
    found, host = s.Statx.unpack(answer.stat), (root / "file").stat()
    assert (found.size, found.mode, found.ino, found.mtime) == (5, host.st_mode, host.st_ino, int(host.st_mtime))
    assert found.mask & 0x7FF == 0x7FF
    assert answer.attr_valid == 1
    guest.share.statx(guest.call(file, s.StatxIn(0, 0, 0x2000, (1 << 32) - 1)))
    with fails(errno.EINVAL):
        guest.share.statx(guest.call(file, s.StatxIn(0, 0, (1 << 32) - 1, 0xFFF)))


def test_statfs_is_that_of_the_host(guest: Guest, root: Path) -> None:
    answer, found = guest.share.statfs(guest.call(ROOT_ID, None)), os.statvfs(root)
    assert (answer.blocks, answer.bsize, answer.namelen) == (found.f_blocks, found.f_bsize, found.f_namemax)


def test_syncfs(guest: Guest) -> None:
    guest.share.syncfs(guest.call(ROOT_ID, s.SyncfsIn(0)))


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "granted"),
    [
        (0, 0, 0o000, 6),
        (0, 0, 0o001, 7),
        (0, 0, 0o400, 6),
        (9, 8, 0o750, 0),
        (9, 8, 0o005, 5),
        (5, 8, 0o640, 6),
        (5, 6, 0o077, 0),
        (9, 6, 0o740, 4),
        (9, 6, 0o707, 0),
    ],
)
def test_access_is_granted_by_the_mode(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, mode: int, granted: int
) -> None:
    file = guest.create(b"file").nodeid
    real = os.fstat

    def owned(fd: int) -> os.stat_result:
        found = list(real(fd))
        found[0], found[4], found[5] = 0o100000 | mode, 5, 6
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", owned)
    guest.uid, guest.gid = uid, gid
    for mask in range(8):
        call = guest.call(file, s.AccessIn(mask))
        if mask & ~granted:
            with fails(errno.EACCES):
                guest.share.access(call)
        else:
            guest.share.access(call)


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
@pytest.mark.parametrize("seconds", [0, -1, -(1 << 31), 1 << 32, 1_700_000_000])
@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_both_halves_say_the_same_of_a_file(guest: Guest, root: Path, kind: str, seconds: int) -> None:
    path = root / kind
    if kind == "file":
        path.write_bytes(b"")
        os.truncate(path, (1 << 33) + 5)
        os.link(path, root / "other")
        path.chmod(0o4755)
        if os.geteuid() == 0:
            os.chown(path, 77, 88)
    elif kind == "directory":
        path.mkdir(0o1700)
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)
    with contextlib.suppress(OSError):  # a time that this file system can't have
        os.utime(path, ns=(seconds * 1_000_000_000 + 999_999_999, seconds * 1_000_000_000 + 1), follow_symlinks=False)
    attributes, plain = Attributes(guest.share._state, None, None), os.lstat(path)
    folder, fd = os.open(root, os.O_PATH), os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        for found in (_native.status.look(folder, os.fsencode(kind)), _native.status.look_at(fd)):
            assert attributes.attr(found, 3) == attributes.attr(plain, 3)
            for field in ("dev", "ino", "mode", "size", "uid", "gid", "mtime_ns"):
                assert getattr(found, f"st_{field}") == getattr(plain, f"st_{field}")
    finally:
        os.close(folder)
        os.close(fd)


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
def test_what_is_not_there_is_told_as_os_does(root: Path) -> None:
    folder = os.open(root, os.O_PATH)
    try:
        with pytest.raises(FileNotFoundError):
            _native.status.look(folder, b"nowhere")
        with pytest.raises(ValueError, match="NUL"):
            _native.status.look(folder, b"no\0where")
    finally:
        os.close(folder)
    with fails(errno.EBADF):
        _native.status.look_at(-1)


def fallocate(guest: Guest, file: Entry, mode: int, offset: int, length: int) -> None:
    guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, offset, length, mode)))


def lseek(guest: Guest, file: Entry, offset: int, whence: int) -> int:
    return guest.share.lseek(guest.call(file.nodeid, s.LseekIn(file.fh, offset, whence))).offset


def copy(guest: Guest, file: Entry, target: Entry, *numbers: int) -> int:
    off_in, off_out, length, flags = numbers
    given = s.CopyFileRangeIn(file.fh, off_in, target.nodeid, target.fh, off_out, length, flags)
    return guest.share.copy_file_range(guest.call(file.nodeid, given)).size


def test_fallocate_punches_and_lseek_finds(guest: Guest) -> None:
    file = guest.create(b"file")
    guest.write(file, b"x" * (64 << 10))
    fallocate(guest, file, 3, 16 << 10, 16 << 10)
    assert lseek(guest, file, 0, os.SEEK_HOLE) == 16 << 10
    assert lseek(guest, file, 16 << 10, os.SEEK_DATA) == 32 << 10
    assert guest.read(file, 4, 16 << 10) == bytes(4)
    fallocate(guest, file, 0, 0, 128 << 10)
    assert guest.getattr(file.nodeid).size == 128 << 10


@pytest.mark.parametrize("mode", [0x08, 0x20, 0x40, 1 << 31, (1 << 32) - 1])
def test_f39_other_ways_to_fallocate_are_not_supported(guest: Guest, mode: int) -> None:
    with fails(errno.EOPNOTSUPP):
        fallocate(guest, guest.create(b"file"), mode, 0, 4096)


@pytest.mark.parametrize("numbers", [(WILD, 1), (0, WILD), (1 << 63, 1), (0, 1 << 63), (END, 1), (1, END), (0, 0)])
def test_f39_fallocate_of_wild_ranges(guest: Guest, numbers: tuple[int, int]) -> None:
    file = guest.create(b"file")
    with fails(errno.EINVAL):
        fallocate(guest, file, 1, *numbers)
    assert guest.getattr(file.nodeid).blocks == 0


def test_f39_lseek_of_wild_values(guest: Guest) -> None:
    file = guest.create(b"file")
    for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 5, (1 << 32) - 1):
        with fails(errno.EINVAL):
            lseek(guest, file, 0, whence)
    for offset in (WILD, 1 << 63, END, 1):
        with fails(errno.ENXIO):
            lseek(guest, file, offset, os.SEEK_DATA)


def test_copy_file_range_copies_on_the_host(guest: Guest) -> None:
    file, target = guest.create(b"file"), guest.create(b"target")
    guest.write(file, b"0123456789")
    assert copy(guest, file, target, 2, 1, 5, 0) == 5
    assert guest.read(target, 99) == b"\x0023456"
    assert copy(guest, file, target, 8, 0, (1 << 63) - 10, 0) == 2
    assert copy(guest, file, target, 100, 0, 5, 0) == 0


@pytest.mark.parametrize("numbers", [(WILD, 0, 1, 0), (0, WILD, 1, 0), (END, 0, 1, 0), (0, 0, 1, 1), (0, 0, 1, WILD)])
def test_f39_copies_of_wild_ranges(guest: Guest, numbers: tuple[int, ...]) -> None:
    file, target = guest.create(b"file"), guest.create(b"target")
    guest.write(file, b"0123456789")
    with fails(errno.EINVAL):
        copy(guest, file, target, *numbers)
    assert guest.getattr(target.nodeid).size == 0


@pytest.mark.parametrize("flags", [0, 1])
def test_fsync_and_fsyncdir(guest: Guest, flags: int) -> None:
    file, directory = guest.create(b"file"), guest.opendir()
    guest.share.fsync(guest.call(file.nodeid, s.FsyncIn(file.fh, flags)))
    guest.share.fsyncdir(guest.call(ROOT_ID, s.FsyncIn(directory, flags)))


def lock(guest: Guest, file: Entry, owner: int, *range_and_type: int, flags: int = 0) -> s.LkIn:
    start, end, type = range_and_type
    return s.LkIn(file.fh, owner, start, end, type, 77, flags)


def test_locks_of_owners_are_in_each_others_way(guest: Guest) -> None:
    file = guest.create(b"file")
    guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 1, 10, 19, fcntl.F_WRLCK)))
    found = guest.share.getlk(guest.call(file.nodeid, lock(guest, file, 2, 0, END, fcntl.F_RDLCK)))
    assert (found.start, found.end, found.type) == (10, 19, fcntl.F_WRLCK)
    with fails(errno.EAGAIN, errno.EACCES):
        guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 2, 19, 19, fcntl.F_RDLCK)))
    guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 2, 20, END, fcntl.F_WRLCK)))
    guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 1, 0, 19, fcntl.F_RDLCK)))
    found = guest.share.getlk(guest.call(file.nodeid, lock(guest, file, 1, 25, 30, fcntl.F_RDLCK)))
    assert (found.start, found.end, found.type) == (20, END, fcntl.F_WRLCK)
    guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 2, 20, END, fcntl.F_UNLCK)))
    found = guest.share.getlk(guest.call(file.nodeid, lock(guest, file, 1, 25, 30, fcntl.F_WRLCK)))
    assert found.type == fcntl.F_UNLCK


def test_flush_ends_the_locks_of_its_owner(guest: Guest) -> None:
    file = guest.create(b"file")
    for owner, start in ((1, 0), (2, 10)):
        guest.share.setlk(guest.call(file.nodeid, lock(guest, file, owner, start, start + 9, fcntl.F_WRLCK)))
    guest.share.flush(guest.call(file.nodeid, s.FlushIn(file.fh, 1)))
    guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 3, 0, 9, fcntl.F_WRLCK)))
    with fails(errno.EAGAIN, errno.EACCES):
        guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 3, 0, 10, fcntl.F_WRLCK)))


def test_locks_that_wait_or_are_of_flock_are_not_supported(guest: Guest) -> None:
    file = guest.create(b"file")
    with fails(errno.EOPNOTSUPP):
        guest.share.setlkw(guest.call(file.nodeid, lock(guest, file, 1, 0, 9, fcntl.F_WRLCK)))
    for ask in (guest.share.setlk, guest.share.getlk, guest.share.setlkw):
        with fails(errno.EOPNOTSUPP):
            ask(guest.call(file.nodeid, lock(guest, file, 1, 0, 9, fcntl.F_WRLCK, flags=LockFlag.FLOCK)))


@pytest.mark.parametrize("wild", [(1 << 63, WILD, 0), (5, 4, 0), (0, 9, 3), (0, 9, 99)])
def test_f39_wild_locks_are_refused(guest: Guest, wild: tuple[int, int, int]) -> None:
    file = guest.create(b"file")
    for ask in (guest.share.setlk, guest.share.getlk):
        with fails(errno.EINVAL):
            ask(guest.call(file.nodeid, lock(guest, file, 1, *wild)))


def test_arguments_are_those_of_the_request(guest: Guest) -> None:
    for ask in (guest.share.getattr, guest.share.open, guest.share.mkdir, guest.share.statx):
        with fails(errno.EINVAL):
            ask(guest.call(ROOT_ID, s.ForgetIn(1), b"x"))


def test_a_read_only_share_is_locked_by_files_that_are_open_to_be_read(root: Path) -> None:
    (root / "file").write_bytes(b"host")
    with Guest(root, ShareOptions(readonly=True)) as guest:
        entry = guest.lookup(b"file")
        file = entry._replace(fh=guest.open(entry.nodeid))
        guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 1, 0, 9, fcntl.F_RDLCK)))
        with fails(errno.EBADF):
            guest.share.setlk(guest.call(file.nodeid, lock(guest, file, 1, 0, 9, fcntl.F_WRLCK)))
