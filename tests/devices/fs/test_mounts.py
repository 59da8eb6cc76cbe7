"""File systems within the share, small ones, and a root that the process can't reach by its path any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from .in_a_namespace import root_only, run

pytestmark = root_only


@pytest.mark.parametrize("handles", ["NEVER", "PREFER", "MANDATORY"])
def test_a_file_system_within_is_announced(root: Path, handles: str) -> None:
    script = f"""
(root / "mount").mkdir()
os.system(f"mount -t tmpfs none {{root}}/mount")
(root / "mount" / "file").write_bytes(b"there")
(root / "mount" / "inside").mkdir()
for announce in (True, False):
    options = ShareOptions(announce_submounts=announce, inode_file_handles=Handles.{handles})
    with Guest(root, options) as guest:
        for agreed in (InitFlag.SUBMOUNTS, 0):
            guest.share.agreed = agreed
            mount = guest.lookup(b"mount")
            plus = {{name: entry.attr.flags for name, _, entry in guest.readdirplus(guest.opendir())}}
            assert plus[b"mount"] == mount.attr.flags, plus
            inside = guest.lookup(b"inside", mount.nodeid)
            file = guest.lookup(b"file", mount.nodeid)
            file = file._replace(fh=guest.open(file.nodeid))
            print(mount.attr.flags, inside.attr.flags, guest.read(file, 9).decode())
"""
    assert run(script, root).splitlines() == ["1 0 there", "0 0 there", "0 0 there", "0 0 there"]


def test_a_directory_seen_through_two_mounts_is_two_inodes(root: Path) -> None:
    script = """
for name in ("a", "b"):
    (root / name).mkdir()
(root / "a" / "file").touch()
os.system(f"mount --bind {root}/a {root}/b")
with Guest(root) as guest:
    a, b = guest.lookup(b"a"), guest.lookup(b"b")
    files = {guest.lookup(b"file", each.nodeid).nodeid for each in (a, b)}
    print(a.nodeid != b.nodeid, a.attr.ino == b.attr.ino, len(files), guest.lookup(b"b").nodeid == b.nodeid)
    with fails(errno.EXDEV):
        guest.rename(b"file", b"file", a.nodeid, b.nodeid)
"""
    assert run(script, root) == "True True 2 True\n"


def test_f35_a_full_file_system_says_so(root: Path) -> None:
    script = """
os.system(f"mount -t tmpfs -o size=64k,nr_inodes=4 none {root}")
with Guest(root) as guest:
    file = guest.create(b"file")
    written = guest.write(file, bytes(64 << 10))
    with fails(errno.ENOSPC):
        guest.write(file, b"x", 64 << 10)
    with fails(errno.ENOSPC):
        guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 0, 1 << 20, 0)))
    guest.mkdir(b"a")
    with fails(errno.ENOSPC):
        guest.mkdir(b"b")
        guest.mkdir(b"c")
    guest.unlink(b"file")
    print(written, guest.getattr(file.nodeid).nlink, guest.share.statfs(guest.call(ROOT_ID, None)).bfree)
"""
    assert run(script, root) == "65536 0 0\n"


def test_f35_a_read_only_file_system_says_so(root: Path) -> None:
    script = """
(root / "file").touch()
os.system(f"mount --bind {root} {root}; mount -o remount,bind,ro {root}")
with Guest(root) as guest:
    file = guest.lookup(b"file")
    for attempt in (lambda: guest.create(b"new"), lambda: guest.unlink(b"file"), lambda: guest.open(file.nodeid, os.O_RDWR)):
        with fails(errno.EROFS):
            attempt()
"""
    assert run(script, root) == ""


@pytest.mark.parametrize("handles", ["NEVER", "PREFER", "MANDATORY"])
def test_a_share_works_where_there_is_no_proc(root: Path, handles: str) -> None:
    script = f"""
with Guest(root, ShareOptions(xattr=True, inode_file_handles=Handles.{handles})) as guest:
    os.chroot(root)
    os.chdir("/")
    assert not os.path.exists("/proc")
    file = guest.create(b"file")
    guest.write(file, b"here")
    guest.share.setxattr(guest.call(file.nodeid, s.SetxattrIn(1, 0, 0), b"user.a", data=b"1"))
    again = guest.lookup(b"file")
    again = again._replace(fh=guest.open(again.nodeid))
    guest.link(file.nodeid, b"linked")
    guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(valid=1 | 8 | 32, mode=0o600, size=2)))
    print(guest.read(again, 9), guest.lookup(b"linked").attr.nlink, os.listxattr("/file"), os.getcwd())
"""
    assert run(script, root) == "b'he' 2 ['user.a'] /\n"
