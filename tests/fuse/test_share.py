"""A directory served over a real connection, from INIT to the last RELEASE."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vhostuser.devices.fs.admission import WRITERS
from vhostuser.devices.fs.device import FsDevice
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.errors import LocalProtocolError
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.testing import DEADLINE, joined
from vhostuser.transport.fds import OwnedFd

from .standin import MEMORY, ROOT, Answer, Guest, answer, body_of, request

MIB = 1 << 20
Begin = Callable[..., "User"]


class Entry(NamedTuple):
    """A file that was looked up."""

    node: int
    attr: s.Attr


class User(Guest):
    """A guest that wants files, not bytes; what fails is an OSError."""

    def done(self, opcode: Opcode, body: bytes = b"", *, node: int = ROOT, room: int = 4096) -> bytes:
        """What follows the header of the answer."""
        error, data = self.ask(opcode, body, node=node, room=room)
        if error:
            raise OSError(error, os.strerror(error))
        return data

    def lookup(self, name: bytes, node: int = ROOT) -> Entry:
        return entry_of(self.done(Opcode.LOOKUP, name + b"\0", node=node))

    def open(self, node: int, flags: int = os.O_RDONLY) -> int:
        return s.OpenOut.unpack(self.done(Opcode.OPEN, s.OpenIn(flags).pack(), node=node)).fh

    def create(self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644) -> tuple[Entry, int]:
        made = self.done(Opcode.CREATE, s.CreateIn(flags, stat.S_IFREG | mode).pack() + name + b"\0")
        size = s.EntryOut.STRUCT.size
        return entry_of(made[:size]), s.OpenOut.unpack(made[size:]).fh

    def read(self, node: int, fh: int, offset: int, size: int) -> bytes:
        return self.done(Opcode.READ, s.ReadIn(fh, offset, size).pack(), node=node, room=16 + size)

    def write(self, node: int, fh: int, offset: int, data: bytes) -> int:
        body = s.WriteIn(fh, offset, len(data)).pack() + data
        return s.WriteOut.unpack(self.done(Opcode.WRITE, body, node=node)).size

    def release(self, node: int, fh: int) -> None:
        self.done(Opcode.RELEASE, s.ReleaseIn(fh).pack(), node=node)

    def names(self, node: int = ROOT) -> set[bytes]:
        """What a directory has, read a little at a time."""
        fh = s.OpenOut.unpack(self.done(Opcode.OPENDIR, bytes(8), node=node)).fh
        found, offset = set(), 0
        while data := self.done(Opcode.READDIR, s.ReadIn(fh, offset, 256).pack(), node=node, room=16 + 256):
            while data:
                entry = s.Dirent.unpack(data[:24])
                found.add(data[24 : 24 + entry.namelen])
                data, offset = data[(24 + entry.namelen + 7) // 8 * 8 :], entry.off
        self.done(Opcode.RELEASEDIR, s.ReleaseIn(fh).pack(), node=node)
        return found


def entry_of(data: bytes) -> Entry:
    found = s.EntryOut.unpack(data)
    return Entry(found.nodeid, s.Attr.unpack(found.attr))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory with a file, a directory and a link; beside it is what is not shared."""
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "shared"
    (folder / "inner").mkdir(parents=True)
    (folder / "hello").write_bytes(b"how do you do?" * 1000)
    (folder / "inner/deep").write_bytes(b"deep")
    (folder / "link").symlink_to("../secret")
    return folder


@pytest.fixture(params=[0, 3], ids=["alone", "workers"])
def user(shared: Path, request: pytest.FixtureRequest) -> Iterator[User]:
    """One in a session, with and without workers."""
    with user_of(shared, ShareOptions(thread_pool_size=request.param, tag="tag")) as user:
        user.init()
        yield user


class user_of:  # noqa: N801  # it is used like a function
    """A user of a device that serves a directory."""

    def __init__(self, path: Path, options: ShareOptions) -> None:
        self._device = FsDevice(OwnedFd(os.open(path, os.O_PATH)), options)
        self._joined = joined(self._device)

    def __enter__(self) -> User:
        frontend, _ = self._joined.__enter__()
        frontend.share_memory(MEMORY)
        return User(frontend, self._device)

    def __exit__(self, *failure: object) -> None:
        self._joined.__exit__(None, None, None)
        self._device.close()


def test_a_file_is_looked_up_opened_and_read(user: User, shared: Path) -> None:
    node, attr = user.lookup(b"hello")
    assert (attr.size, stat.S_IFMT(attr.mode), attr.ino) == (14000, stat.S_IFREG, (shared / "hello").stat().st_ino)
    fh = user.open(node)
    assert user.read(node, fh, 0, 20000) == b"how do you do?" * 1000
    assert user.read(node, fh, 13990, 100) == b"ow do you do?"[3:]
    assert user.read(node, fh, 14000, 100) == b""
    user.release(node, fh)
    with pytest.raises(OSError, match="Bad file descriptor"):
        user.read(node, fh, 0, 10)


def test_what_is_not_there_is_not_found_and_nothing_outside_is(user: User) -> None:
    for name in (b"nothing", b"secret"):
        with pytest.raises(FileNotFoundError):
            user.lookup(name)
    for name in (b"..", b"../secret", b"/etc/passwd", b"inner/deep"):
        assert user.ask(Opcode.LOOKUP, name + b"\0").error == errno.EINVAL
    link = user.lookup(b"link")
    assert user.done(Opcode.READLINK, node=link.node) == b"../secret"
    assert user.ask(Opcode.LOOKUP, b"x\0", node=link.node).error == errno.ENOTDIR


def test_a_file_is_made_written_synced_and_released(user: User, shared: Path) -> None:
    (node, attr), fh = user.create(b"new")
    assert attr.size == 0
    assert user.write(node, fh, 0, b"some text") == 9
    assert user.write(node, fh, 5, b"bytes and more") == 14
    assert user.read(node, fh, 0, 100) == b"some bytes and more"
    user.done(Opcode.FSYNC, s.FsyncIn(fh).pack(), node=node)
    user.done(Opcode.FLUSH, s.FlushIn(fh).pack(), node=node)
    user.release(node, fh)
    assert (shared / "new").read_bytes() == b"some bytes and more"
    got = s.AttrOut.unpack(user.done(Opcode.GETATTR, bytes(16), node=node))
    assert s.Attr.unpack(got.attr).size == 19


def test_megabytes_go_both_ways_in_pages(user: User, shared: Path) -> None:
    """As a guest's kernel cuts them: a buffer for the header, and one a page."""
    (node, _), fh = user.create(b"large")
    data = os.urandom(MIB)
    for at in range(3):
        head = request(Opcode.WRITE, s.WriteIn(fh, at * MIB, MIB).pack() + data, node=node)
        parts = [head[:40], head[40:80], *(head[80 + page : 80 + page + 8192] for page in range(0, MIB, 8192))]
        done = user.queue.finish(user.queue.submit(parts, [16, 8]), timeout=DEADLINE)
        assert answer(done.data, 2) == Answer(0, s.WriteOut(MIB).pack())
    assert (shared / "large").read_bytes() == data * 3
    ticket = user.queue.submit(
        [request(Opcode.READ, s.ReadIn(fh, MIB // 2, MIB).pack(), node=node)], [16, *[8192] * (MIB // 8192)]
    )
    assert answer(user.queue.finish(ticket, timeout=DEADLINE).data, 2).body == data[MIB // 2 :] + data[: MIB // 2]
    user.release(node, fh)
    counts = user.device.counts
    assert (counts["bytes_written"], counts["bytes_read"]) == (3 * MIB, MIB)


def test_a_directory_is_listed_changed_and_emptied(user: User, shared: Path) -> None:
    assert user.names() >= {b"hello", b"inner", b"link"}
    inner = user.lookup(b"inner")
    assert user.names(inner.node) - {b".", b".."} == {b"deep"}
    user.done(Opcode.RENAME2, s.Rename2In(ROOT).pack() + b"deep\0risen\0", node=inner.node)
    user.done(Opcode.RMDIR, b"inner\0")
    user.done(Opcode.MKDIR, s.MkdirIn(0o700).pack() + b"made\0")
    user.done(Opcode.SYMLINK, b"pointer\0made\0")
    user.done(Opcode.UNLINK, b"hello\0")
    assert sorted(os.listdir(shared)) == ["link", "made", "pointer", "risen"]
    assert os.readlink(shared / "pointer") == "made"


def test_two_hundred_names_are_listed_each_once(user: User, shared: Path) -> None:
    for at in range(200):
        (shared / f"file-{at:03}").touch()
    assert user.names() >= {f"file-{at:03}".encode() for at in range(200)}


def test_a_file_system_is_described(user: User, shared: Path) -> None:
    found = s.Kstatfs.unpack(user.done(Opcode.STATFS))
    assert (found.bsize, found.namelen) == (os.statvfs(shared).f_bsize, os.statvfs(shared).f_namemax)


def test_what_was_open_or_known_is_gone_with_its_session(user: User) -> None:
    """F15, F19."""
    node, _ = user.lookup(b"hello")
    fh = user.open(node)
    user.init()
    assert user.ask(Opcode.GETATTR, bytes(16), node=node).error in (errno.EBADF, errno.ESTALE)
    again, _ = user.lookup(b"hello")
    assert user.ask(Opcode.READ, s.ReadIn(fh, 0, 10).pack(), node=again).error == errno.EBADF
    user.done(Opcode.DESTROY)
    assert user.ask(Opcode.LOOKUP, b"hello\0").error == errno.EIO
    user.frontend.reset()
    user.start()
    user.init()
    assert user.lookup(b"hello").attr.size == 14000


def test_a_forgotten_inode_is_known_no_more_and_the_root_always_is(user: User) -> None:
    """F17."""
    node, _ = user.lookup(b"hello")
    user.tell(Opcode.FORGET, s.ForgetIn(1).pack(), node=node)
    assert user.ask(Opcode.GETATTR, bytes(16), node=node).error in (errno.EBADF, errno.ESTALE)
    user.tell(Opcode.FORGET, s.ForgetIn((1 << 64) - 1).pack(), node=ROOT)
    user.tell(Opcode.FORGET, s.ForgetIn((1 << 64) - 1).pack(), node=12345)
    assert user.lookup(b"hello").attr.size == 14000


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
def test_wild_numbers_are_errnos(user: User, number: int) -> None:
    """F20, F21, F39."""
    node, _ = user.lookup(b"hello")
    fh = user.open(node, os.O_RDWR)
    low = 0xFFFF_FFFF
    wild: list[tuple[Opcode, bytes]] = [
        (Opcode.FALLOCATE, s.FallocateIn(fh, number, number, 0).pack()),
        (Opcode.FALLOCATE, s.FallocateIn(fh, 0, 10, low).pack()),
        (Opcode.LSEEK, s.LseekIn(fh, number, low).pack()),
        (Opcode.LSEEK, s.LseekIn(number, 0, 3).pack()),
        (Opcode.COPY_FILE_RANGE, s.CopyFileRangeIn(fh, number, node, fh, number, number, 0).pack()),
        (Opcode.COPY_FILE_RANGE, s.CopyFileRangeIn(fh, 0, number, fh, 0, 10, number).pack()),
        (Opcode.READ, s.ReadIn(number, 0, 10).pack()),
        (Opcode.READDIR, s.ReadIn(fh, number, 10).pack()),
        (Opcode.RELEASE, s.ReleaseIn(number).pack()),
        (Opcode.FLUSH, s.FlushIn(number).pack()),
        (Opcode.SETATTR, s.SetattrIn(valid=8, size=number | 1 << 63).pack()),
        (Opcode.GETLK, s.LkIn(fh, number, number, 0, low, low, low).pack()),
        (Opcode.MKNOD, s.MknodIn(low, low, low).pack() + b"x\0"),
    ]
    bad = {errno.EINVAL, errno.EBADF, errno.EFBIG, errno.ENXIO, errno.ENOTDIR}
    bad |= {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
    for opcode, body in wild:
        assert user.ask(opcode, body, node=node).error in bad, opcode.name
    for opcode in (Opcode.IOCTL, Opcode.POLL, Opcode.BMAP):
        assert user.ask(opcode, bytes(32), node=node).error == errno.ENOSYS
    user.release(node, fh)


def test_a_read_only_share_is_read(shared: Path) -> None:
    with user_of(shared, ShareOptions(readonly=True)) as user:
        user.init()
        node, _ = user.lookup(b"hello")
        assert user.read(node, user.open(node), 0, 14) == b"how do you do?"
        with pytest.raises(OSError, match="Read-only"):
            user.create(b"new")
        with pytest.raises(OSError, match="Read-only"):
            user.open(node, os.O_RDWR)
    assert not (shared / "new").exists()


def test_nothing_changes_a_read_only_share(shared: Path) -> None:
    """Whatever writes is refused before it is looked at, so one of each is enough."""
    before = told(shared)
    with user_of(shared, ShareOptions(readonly=True, xattr=True)) as user:
        user.init()
        node, _ = user.lookup(b"hello")
        for opcode in sorted(WRITERS):
            assert user.ask(opcode, body_of(opcode), node=node) == Answer(errno.EROFS, b"")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            assert user.ask(Opcode.OPEN, s.OpenIn(flags).pack(), node=node).error == errno.EROFS
    assert told(shared) == before


def told(folder: Path) -> dict[Path, tuple[int, ...]]:
    """All that there is, and whether it is as it was."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (it.st_mode, it.st_nlink, it.st_size, it.st_mtime_ns, it.st_ctime_ns) for path, it in found.items()}


def test_a_single_file_may_be_the_share(shared: Path) -> None:
    with user_of(shared / "hello", ShareOptions()) as user:
        user.init()
        assert user.read(ROOT, user.open(ROOT), 0, 14) == b"how do you do?"


def test_with_a_tag_that_does_not_fit_the_root_stays_the_callers(shared: Path) -> None:
    with OwnedFd(os.open(shared, os.O_PATH)) as root, pytest.raises(LocalProtocolError, match="37 bytes"):
        FsDevice(root, ShareOptions(tag="t" * 37))
