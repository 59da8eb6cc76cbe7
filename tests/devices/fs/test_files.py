"""Open files: what may be opened, which `fh` is whose, and where bytes may be read and written."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import Cache, ShareOptions
from vhostuser.devices.fs.passthrough import calls
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, FopenFlag, InitFlag, WriteFlag

from .failing import fails
from .guest import WILD, Entry, Guest, Room, Source

SPECIAL = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}


def test_what_is_written_is_read(guest: Guest, root: Path) -> None:
    file = guest.create(b"file")
    assert guest.write(file, b"hello") == 5
    assert guest.write(file, b"J", 0) == 1
    assert guest.read(file, 100) == b"Jello"
    assert guest.read(file, 2, 3) == b"lo"
    assert guest.getattr(file.nodeid).size == 5
    guest.release(file)
    assert (root / "file").read_bytes() == b"Jello"


def test_create_opens_what_is_there(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"kept")
    file = guest.create(b"file", os.O_RDWR)
    assert guest.read(file, 10) == b"kept"
    with fails(errno.EEXIST):
        guest.create(b"file", os.O_RDWR | os.O_EXCL)
    assert guest.create(b"file", os.O_RDWR | os.O_TRUNC).attr.size == 0


def test_a_create_that_fails_counts_no_lookup(guest: Guest, root: Path) -> None:
    os.mkfifo(root / "fifo")
    nodeid = guest.lookup(b"fifo").nodeid
    with fails(errno.EBADF):
        guest.create(b"fifo", os.O_RDWR)
    guest.forget(nodeid)
    with fails(errno.EBADF):
        guest.getattr(nodeid)


def test_f06_an_unlinked_file_is_opened_again_by_its_inode(guest: Guest, root: Path) -> None:
    file = guest.create(b"file")
    guest.write(file, b"mine")
    guest.unlink(b"file")
    (root / "file").write_bytes(b"other")
    again = file._replace(fh=guest.open(file.nodeid))
    assert guest.read(again, 10) == b"mine"
    assert guest.getattr(file.nodeid).nlink == 0


@pytest.mark.parametrize("by_host", [True, False])
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_f07_fifos_and_sockets_are_not_opened(guest: Guest, root: Path, kind: str, by_host: bool, flags: int) -> None:
    if by_host:
        os.mknod(root / "it", 0o644 | SPECIAL[kind])
    else:
        guest.mknod(b"it", 0o644 | SPECIAL[kind])
    nodeid = guest.lookup(b"it").nodeid
    with fails(errno.EBADF):
        guest.open(nodeid, flags)
    with fails(errno.EBADF):
        guest.create(b"it", flags)
    with fails(errno.EINVAL):
        truncate = s.SetattrIn(valid=1 << 3, size=0)
        guest.share.setattr(guest.call(nodeid, truncate))
    with fails(errno.EBADF):
        guest.share.file(nodeid)
    with fails(errno.EBADF):
        guest.share.syncfs(guest.call(nodeid, s.SyncfsIn(0)))


def test_f07_a_bound_socket_is_not_opened(guest: Guest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        with fails(errno.EBADF):
            guest.open(guest.lookup(b"s").nodeid)


def test_directories_are_no_files_nor_files_directories(guest: Guest) -> None:
    with fails(errno.EISDIR):
        guest.open(ROOT_ID)
    file = guest.create(b"file")
    with fails(errno.ENOTDIR):
        guest.opendir(file.nodeid)
    guest.mkdir(b"directory")
    with fails(errno.EISDIR):
        guest.create(b"directory")


BY_FH: dict[str, Callable[[Guest, int, int], object]] = {
    "READ": lambda guest, nodeid, fh: guest.share.read(guest.call(nodeid, s.ReadIn(fh, 0, 1, 0, 0, 0)), Room(1)),
    "WRITE": lambda guest, nodeid, fh: guest.share.write(guest.call(nodeid, s.WriteIn(fh, 0, 1)), Source(b"x")),
    "RELEASE": lambda guest, nodeid, fh: guest.share.release(guest.call(nodeid, s.ReleaseIn(fh, 0, 0, 0))),
    "FLUSH": lambda guest, nodeid, fh: guest.share.flush(guest.call(nodeid, s.FlushIn(fh, 0))),
    "FSYNC": lambda guest, nodeid, fh: guest.share.fsync(guest.call(nodeid, s.FsyncIn(fh, 0))),
    "GETATTR": lambda guest, nodeid, fh: guest.share.getattr(guest.call(nodeid, s.GetattrIn(1, fh))),
    "SETATTR": lambda guest, nodeid, fh: guest.share.setattr(guest.call(nodeid, s.SetattrIn(valid=1 << 6 | 1 << 3, fh=fh))),
    "STATX": lambda guest, nodeid, fh: guest.share.statx(guest.call(nodeid, s.StatxIn(1, fh, 0, 0xFFF))),
    "FALLOCATE": lambda guest, nodeid, fh: guest.share.fallocate(guest.call(nodeid, s.FallocateIn(fh, 0, 1, 0))),
    "LSEEK": lambda guest, nodeid, fh: guest.share.lseek(guest.call(nodeid, s.LseekIn(fh, 0, os.SEEK_HOLE))),
    "GETLK": lambda guest, nodeid, fh: guest.share.getlk(guest.call(nodeid, s.LkIn(fh, 1, 0, 1, 0, 0, 0))),
    "SETLK": lambda guest, nodeid, fh: guest.share.setlk(guest.call(nodeid, s.LkIn(fh, 1, 0, 1, 0, 0, 0))),
    "COPY from": lambda guest, nodeid, fh: guest.share.copy_file_range(
        guest.call(nodeid, s.CopyFileRangeIn(fh, 0, nodeid, fh, 10, 1, 0))
    ),
}
BY_DIRECTORY_FH: dict[str, Callable[[Guest, int, int], object]] = {
    "READDIR": lambda guest, nodeid, fh: guest.readdir(fh, nodeid=nodeid),
    "READDIRPLUS": lambda guest, nodeid, fh: guest.readdirplus(fh, nodeid=nodeid),
    "RELEASEDIR": lambda guest, nodeid, fh: guest.releasedir(fh, nodeid=nodeid),
    "FSYNCDIR": lambda guest, nodeid, fh: guest.share.fsyncdir(guest.call(nodeid, s.FsyncIn(fh, 0))),
}


@pytest.mark.parametrize("request_", BY_FH)
def test_f20_fh_is_that_of_an_open_file_of_the_inode(guest: Guest, request_: str) -> None:
    file, other = guest.create(b"file"), guest.create(b"other")
    directory = guest.opendir()
    guest.release(file)
    for fh in (file.fh, other.fh, directory, 0, 777, WILD):
        with fails(errno.EBADF):
            BY_FH[request_](guest, file.nodeid, fh)
    with fails(errno.EBADF):
        BY_FH[request_](guest, ROOT_ID, directory)


@pytest.mark.parametrize("request_", BY_DIRECTORY_FH)
def test_f20_fh_is_that_of_an_open_directory_of_the_inode(guest: Guest, request_: str) -> None:
    inside = guest.mkdir(b"inside").nodeid
    file, other, closed = guest.create(b"file"), guest.opendir(inside), guest.opendir()
    guest.releasedir(closed)
    for fh in (file.fh, other, closed, 0, 777, WILD):
        with fails(errno.EBADF):
            BY_DIRECTORY_FH[request_](guest, ROOT_ID, fh)


def test_f20_a_session_ends_all_that_is_open(guest: Guest) -> None:
    file = guest.create(b"file")
    guest.share.reset()
    nodeid = guest.lookup(b"file").nodeid
    with fails(errno.EBADF):
        guest.read(file._replace(nodeid=nodeid), 1)


def test_f21_read_is_cut_to_the_room(guest: Guest) -> None:
    file = guest.create(b"file")
    guest.write(file, b"x" * 100)
    room = Room(10)
    assert guest.share.read(guest.call(file.nodeid, s.ReadIn(file.fh, 0, (1 << 32) - 1, 0, 0, 0)), room) == 10
    assert guest.read(file, 0) == b""


@pytest.mark.parametrize("offset", [1 << 63, WILD, (1 << 63) - 1])
def test_f21_wild_offsets_are_refused(guest: Guest, offset: int) -> None:
    file = guest.create(b"file")
    with fails(errno.EINVAL):
        guest.read(file, 1, offset)
    with fails(errno.EFBIG):
        guest.write(file, b"x", offset)
    assert guest.getattr(file.nodeid).size == 0


def test_f21_write_has_what_it_says(guest: Guest) -> None:
    file = guest.create(b"file")
    with fails(errno.EINVAL):
        guest.share.write(guest.call(file.nodeid, s.WriteIn(file.fh, 0, 5)), Source(b"four"))
    assert guest.getattr(file.nodeid).size == 0


def flags_of(file: Entry, root: Path) -> list[int]:
    """The open flags of each fd that this process has on a file, O_PATH ones left out."""
    target, found = os.stat(root / "file"), []
    for name in os.listdir("/proc/self/fd"):
        try:
            number = int(name)
            if os.path.samestat(os.fstat(number), target):
                text = Path(f"/proc/self/fdinfo/{name}").read_text()
                flags = int(text.split("flags:")[1].split()[0], 8)
                if not flags & os.O_PATH:
                    found.append(flags)
        except OSError:  # the listing's own fd
            continue
    return found


def test_direct_and_noatime_are_only_for_who_allows_them(root: Path) -> None:
    (root / "file").touch()
    wanted = os.O_NOATIME | os.O_DIRECT
    for allow in (False, True):
        with Guest(root, ShareOptions(allow_direct_io=allow, preserve_noatime=allow)) as guest:
            file = guest.lookup(b"file")
            guest.open(file.nodeid, os.O_RDONLY | wanted)
            assert [flags & wanted for flags in flags_of(file, root)] == [wanted if allow else 0]


@pytest.mark.parametrize("create", [True, False])
def test_a_write_back_cache_reads_what_is_only_written_and_knows_the_end(root: Path, create: bool) -> None:
    with Guest(root, ShareOptions(writeback=True)) as guest:
        guest.share.agreed = InitFlag.WRITEBACK_CACHE
        if not create:
            (root / "file").touch()
        file = guest.create(b"file", os.O_WRONLY | os.O_APPEND)
        assert [flags & (os.O_ACCMODE | os.O_APPEND) for flags in flags_of(file, root)] == [os.O_RDWR]
        guest.write(file, b"xy", open_flags=os.O_APPEND)
        guest.write(file, b"z", open_flags=os.O_APPEND)
        assert guest.read(file, 9) == b"zy"


def opened_to_append(guest: Guest, root: Path, how: str) -> Entry:
    """`file`, which has 4 bytes, opened anew, or by CREATE, or made."""
    if how == "made":
        file = guest.create(b"file", os.O_RDWR | os.O_APPEND)
        guest.write(file, b"0123")
        return file
    (root / "file").write_bytes(b"0123")
    if how == "created":
        return guest.create(b"file", os.O_RDWR | os.O_APPEND)
    file = guest.lookup(b"file")
    return file._replace(fh=guest.open(file.nodeid, os.O_RDWR | os.O_APPEND))


ways = pytest.mark.parametrize("how", ["opened", "created", "made"])


@ways
def test_what_is_appended_goes_to_the_end_that_the_host_knows_of(guest: Guest, root: Path, how: str) -> None:
    file = opened_to_append(guest, root, how)
    with (root / "file").open("ab") as host:
        host.write(b"host")
    assert guest.write(file, b"guest", 4, open_flags=os.O_APPEND) == 5
    assert (root / "file").read_bytes() == b"0123hostguest"


@ways
@pytest.mark.parametrize(("flags", "open_flags"), [(WriteFlag.CACHE, 0), (WriteFlag.CACHE, os.O_APPEND), (0, 0)])
def test_a_page_of_the_cache_and_a_write_after_fcntl_go_where_they_belong(
    guest: Guest, root: Path, how: str, flags: int, open_flags: int
) -> None:
    """Although the file was opened with O_APPEND: it was mapped and synced, or it has lost the flag."""
    file = opened_to_append(guest, root, how)
    assert guest.write(file, b"ab", 1, flags, open_flags) == 2
    assert (root / "file").read_bytes() == b"0ab3"


def test_what_loses_suid_is_appended_too(guest: Guest, root: Path) -> None:
    file = opened_to_append(guest, root, "opened")
    guest.write(file, b"45", 0, WriteFlag.KILL_SUIDGID, os.O_APPEND)
    assert (root / "file").read_bytes() == b"012345"


@pytest.fixture
def append_only(root: Path) -> Iterator[Path]:
    """A file with `chattr +a`, as logs have it."""
    path = root / "file"
    path.write_bytes(b"0123")
    if subprocess.run(["chattr", "+a", path], capture_output=True, check=False).returncode:
        pytest.skip("no file can be made append-only here: it needs root, and a file system that has this")
    yield path
    subprocess.run(["chattr", "-a", path], check=True)


def test_what_can_only_be_appended_to_is_only_appended_to(guest: Guest, append_only: Path) -> None:
    nodeid = guest.lookup(b"file").nodeid
    with fails(errno.EPERM):
        guest.open(nodeid, os.O_RDWR)
    file = guest.lookup(b"file")._replace(fh=guest.open(nodeid, os.O_RDWR | os.O_APPEND))
    guest.write(file, b"45", 0, open_flags=os.O_APPEND)
    for flags, open_flags in ((WriteFlag.CACHE, os.O_APPEND), (0, 0)):
        with fails(errno.EPERM):
            guest.write(file, b"xx", 0, flags, open_flags)
    assert append_only.read_bytes() == b"012345"


def test_open_can_make_nothing(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"there")
    file = guest.lookup(b"file")
    for more in (os.O_CREAT | os.O_EXCL, os.O_PATH, os.O_NOFOLLOW, os.O_NOCTTY, 1 << 30):
        assert guest.read(file._replace(fh=guest.open(file.nodeid, os.O_RDWR | more)), 9) == b"there"
    with fails(errno.ENOTDIR):
        guest.open(file.nodeid, os.O_RDWR | os.O_TMPFILE)


@pytest.mark.parametrize(
    ("cache", "seconds", "file_flags", "directory_flags"),
    [
        (Cache.AUTO, 1, 0, 0),
        (Cache.ALWAYS, 86400, FopenFlag.KEEP_CACHE, FopenFlag.CACHE_DIR | FopenFlag.KEEP_CACHE),
        (Cache.NEVER, 0, FopenFlag.DIRECT_IO, 0),
        (Cache.METADATA, 86400, FopenFlag.DIRECT_IO, FopenFlag.CACHE_DIR | FopenFlag.KEEP_CACHE),
    ],
)
def test_how_long_the_guest_may_keep_what_it_knows(
    root: Path, cache: Cache, seconds: int, file_flags: int, directory_flags: int
) -> None:
    with Guest(root, ShareOptions(cache=cache)) as guest:
        file = guest.create(b"file")
        assert (file.out.entry_valid, file.out.attr_valid) == (seconds, seconds)
        opened = s.OpenOut.unpack(guest.share.open(guest.call(file.nodeid, s.OpenIn(0, 0))))
        assert opened.open_flags & ~FopenFlag.NOFLUSH == file_flags
        assert guest.share.opendir(guest.call(ROOT_ID, s.OpenIn(0, 0))).open_flags == directory_flags


def flags_told(guest: Guest, nodeid: int) -> int:
    return s.OpenOut.unpack(guest.share.open(guest.call(nodeid, s.OpenIn(0, 0)))).open_flags


def test_flush_is_not_asked_for_where_close_says_nothing(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "file_system", lambda fd: 0xEF53)
    nodeid = guest.create(b"file").nodeid
    assert flags_told(guest, nodeid) == FopenFlag.NOFLUSH
    guest.share.agreed = InitFlag.POSIX_LOCKS
    assert flags_told(guest, nodeid) == 0


def test_flush_is_asked_for_where_close_may_fail(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "file_system", lambda fd: 0x6969)  # NFS
    assert flags_told(guest, guest.create(b"file").nodeid) == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_f35_flush_says_what_close_says(guest: Guest, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file, real, failures = guest.create(b"file"), os.close, [number]

    def close(fd: int) -> None:
        real(fd)
        if failures:
            raise OSError(failures.pop(), "")

    monkeypatch.setattr(os, "close", close)
    with fails(number):
        guest.share.flush(guest.call(file.nodeid, s.FlushIn(file.fh, 0)))
    guest.share.flush(guest.call(file.nodeid, s.FlushIn(file.fh, 0)))


def test_tmpfile_has_no_name_until_it_is_linked(guest: Guest, root: Path) -> None:
    given = s.CreateIn(os.O_RDWR, 0o640, 0, 0)
    data = guest.share.tmpfile(guest.call(ROOT_ID, given, b""))
    size = s.EntryOut.STRUCT.size
    file = guest_entry(data[:size])._replace(fh=s.OpenOut.unpack(data[size:]).fh)
    assert file.attr.nlink == 0
    assert os.listdir(root) == []
    guest.write(file, b"here")
    assert guest.link(file.nodeid, b"named").nodeid == file.nodeid
    assert (root / "named").read_bytes() == b"here"


def guest_entry(data: bytes) -> Entry:
    out = s.EntryOut.unpack(data)
    return Entry(out, s.Attr.unpack(out.attr), out.nodeid)


def test_f30_what_is_mapped_is_opened_by_its_inode(guest: Guest, root: Path) -> None:
    file = guest.create(b"file")
    guest.write(file, b"here")
    mapped = guest.share.file(file.nodeid)
    found = os.stat(root / "file")
    assert mapped.key == (found.st_dev, found.st_ino)
    guest.release(file)
    guest.unlink(b"file")
    guest.forget(file.nodeid)
    with mapped.open(os.O_RDONLY) as fd:
        assert os.pread(fd.fileno(), 10, 0) == b"here"
