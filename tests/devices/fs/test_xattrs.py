"""Extended attributes: which names the guest may use, and how much fits."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough.calls import failed
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, InitFlag

from .failing import fails
from .guest import Guest

ACCESS_ACL = (2).to_bytes(4, "little") + b"".join(
    tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + b"\xff\xff\xff\xff" for tag, perm in ((1, 6), (4, 4), (32, 4))
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def guest(root: Path) -> Iterator[Guest]:
    with Guest(root, ShareOptions(xattr=True)) as made:
        yield made


def set_(guest: Guest, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> None:
    given = s.SetxattrIn(len(value), flags, 0)
    guest.share.setxattr(guest.call(nodeid, given, name, data=value))


def get(guest: Guest, nodeid: int, name: bytes, size: int = 65536) -> bytes:
    return guest.share.getxattr(guest.call(nodeid, s.GetxattrIn(size), name))


def names(guest: Guest, nodeid: int, size: int = 65536) -> list[bytes]:
    return guest.share.listxattr(guest.call(nodeid, s.GetxattrIn(size))).split(b"\0")[:-1]


def test_what_is_set_is_got(guest: Guest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    nodeid = guest.create(b"file").nodeid
    set_(guest, nodeid, b"user.a", b"1234")
    set_(guest, nodeid, b"user.b", b"")
    assert get(guest, nodeid, b"user.a") == b"1234"
    assert get(guest, nodeid, b"user.b") == b""
    assert sorted(names(guest, nodeid)) == [b"user.a", b"user.b"]
    guest.share.removexattr(guest.call(nodeid, None, b"user.a"))
    assert os.listxattr(root / "file") == ["user.b"]
    with fails(errno.ENODATA):
        get(guest, nodeid, b"user.a")
    assert os.getcwd() == os.fspath(root)


def test_sizes_are_asked_for_and_kept(guest: Guest) -> None:
    nodeid = guest.create(b"file").nodeid
    set_(guest, nodeid, b"user.a", b"1234")
    assert get(guest, nodeid, b"user.a", 0) == s.GetxattrOut(4).pack()
    assert get(guest, nodeid, b"user.a", 4) == b"1234"
    assert guest.share.listxattr(guest.call(nodeid, s.GetxattrIn(0))) == s.GetxattrOut(7).pack()
    for size in (1, 3):
        with fails(errno.ERANGE):
            get(guest, nodeid, b"user.a", size)
        with fails(errno.ERANGE):
            names(guest, nodeid, size)
    assert get(guest, nodeid, b"user.a", (1 << 32) - 1) == b"1234"


def test_flags(guest: Guest) -> None:
    nodeid = guest.create(b"file").nodeid
    with fails(errno.ENODATA):
        set_(guest, nodeid, b"user.a", b"1", os.XATTR_REPLACE)
    set_(guest, nodeid, b"user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        set_(guest, nodeid, b"user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EINVAL):
        set_(guest, nodeid, b"user.a", b"1", 4)


@pytest.mark.parametrize("size", [3, 5, 0, 1 << 16])
def test_f12_a_value_has_the_length_it_says(guest: Guest, size: int) -> None:
    nodeid = guest.create(b"file").nodeid
    with fails(errno.EINVAL):
        guest.share.setxattr(guest.call(nodeid, s.SetxattrIn(size, 0, 0), b"user.a", data=b"four"))
    assert names(guest, nodeid) == []


def test_f12_values_and_names_have_limits(guest: Guest) -> None:
    nodeid = guest.create(b"file").nodeid
    with fails(errno.E2BIG):
        set_(guest, nodeid, b"user.a", bytes((64 << 10) + 1))
    with fails(errno.E2BIG):
        guest.share.setxattr(guest.call(nodeid, s.SetxattrIn((1 << 32) - 1, 0, 0), b"user.a", data=b"x"))
    with fails(errno.ERANGE):
        set_(guest, nodeid, b"user." + b"x" * 251, b"1")
    for name in (b"", b"user.\0"):
        with fails(errno.EINVAL):
            set_(guest, nodeid, name, b"1")
    with fails(errno.EOPNOTSUPP):
        set_(guest, nodeid, b"nosuch.a", b"1")


def test_f12_by_default_there_are_none(root: Path) -> None:
    (root / "file").touch()
    os.setxattr(root / "file", "user.a", b"kept")
    with Guest(root) as guest:
        nodeid = guest.lookup(b"file").nodeid
        for name in (b"user.a", b"trusted.a", b"security.a", b"system.posix_acl_access"):
            with fails(errno.ENOSYS):
                set_(guest, nodeid, name, b"x")
            with fails(errno.ENOSYS):
                get(guest, nodeid, name)
            with fails(errno.ENOSYS):
                guest.share.removexattr(guest.call(nodeid, None, name))
        with fails(errno.ENOSYS):
            names(guest, nodeid)
    assert os.getxattr(root / "file", "user.a") == b"kept"


def test_f12_acls_are_for_who_agreed_upon_them(guest: Guest, root: Path) -> None:
    nodeid = guest.create(b"file").nodeid
    with fails(errno.EOPNOTSUPP):
        set_(guest, nodeid, b"system.posix_acl_access", ACCESS_ACL)
    guest.share.agreed = InitFlag.POSIX_ACL
    set_(guest, nodeid, b"system.posix_acl_access", ACCESS_ACL)
    assert guest.getattr(nodeid).mode & 0o777 == 0o644
    guest.share.agreed = 0
    assert names(guest, nodeid) == []
    with fails(errno.EOPNOTSUPP):
        get(guest, nodeid, b"system.posix_acl_access")


class Mapped:
    """trusted.* is user.trusted.* on the host, security.* may not be used; the guest does not see other user.trusted.*."""

    def client_to_host(self, name: bytes) -> bytes:
        if name.startswith((b"security.", b"user.trusted.")):
            raise failed(errno.EPERM)
        return b"user." + name if name.startswith(b"trusted.") else name

    def host_to_client(self, name: bytes) -> bytes | None:
        if name.startswith((b"security.", b"trusted.")):
            return None
        return name.removeprefix(b"user.") if name.startswith(b"user.trusted.") else name


def test_f12_names_are_mapped_or_refused(root: Path) -> None:
    with Guest(root, ShareOptions(xattr=True), xattr_names=Mapped()) as guest:
        nodeid = guest.create(b"file").nodeid
        set_(guest, nodeid, b"trusted.a", b"1")
        set_(guest, nodeid, b"user.b", b"2")
        for name in (b"security.a", b"user.trusted.a"):
            with fails(errno.EPERM):
                set_(guest, nodeid, name, b"x")
            with fails(errno.EPERM):
                get(guest, nodeid, name)
        assert sorted(os.listxattr(root / "file")) == ["user.b", "user.trusted.a"]
        assert sorted(names(guest, nodeid)) == [b"trusted.a", b"user.b"]
        assert get(guest, nodeid, b"trusted.a") == b"1"


def test_f07_a_fifo_is_not_opened_for_them(guest: Guest, root: Path) -> None:
    os.mkfifo(root / "fifo")
    nodeid = guest.lookup(b"fifo").nodeid
    with fails(errno.EPERM):
        set_(guest, nodeid, b"user.a", b"1")
    assert names(guest, nodeid) == []


def test_f03_those_of_a_symlink_are_its_own(guest: Guest, root: Path) -> None:
    (root / "target").touch()
    os.setxattr(root / "target", "user.a", b"of the target")
    made = guest.symlink(b"link", b"target")
    assert names(guest, made.nodeid) == []
    with fails(errno.ENODATA, errno.EPERM):
        get(guest, made.nodeid, b"user.a")
    with fails(errno.EPERM):
        set_(guest, made.nodeid, b"user.a", b"changed")
    assert os.getxattr(root / "target", "user.a") == b"of the target"


def test_f19_of_no_inode(guest: Guest) -> None:
    with fails(errno.EBADF):
        names(guest, ROOT_ID + 1)
