"""Who makes a file, with which mode, and which bits don't outlive a change. Needs root to say anything about others."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vhostuser.devices.fs.idmap import parse_idmap
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough import calls
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, InitFlag, OpenFlag, WriteFlag
from vhostuser.testing import DEADLINE

from .failing import fails
from .guest import Entry, Guest, Source
from .in_a_namespace import open_to_all, root_only, run

SOMEONE, SOME_GROUP, OTHER_GROUP = 12345, 23456, 34567
NOBODY = 0xFFFF_FFFF
CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)

MAKERS: dict[str, Callable[[Guest], Entry]] = {
    "CREATE": lambda guest: guest.create(b"it", umask=0o022, mode=0o666),
    "MKDIR": lambda guest: guest.mkdir(b"it"),
    "MKNOD": lambda guest: guest.mknod(b"it", stat.S_IFREG | 0o644),
    "SYMLINK": lambda guest: guest.symlink(b"it", b"x"),
}


@pytest.fixture
def ids() -> Iterator[None]:
    """This thread is afterwards who it was."""

    def are() -> tuple[object, ...]:
        lines = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text().splitlines()
        kept = ("Uid", "Gid", "Groups", "Umask", "CapEff", "CapPrm")
        return tuple(line for line in lines if line.startswith(kept))

    before = are()
    yield
    assert are() == before


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize("request_", MAKERS)
def test_a_new_file_is_whose_request_it_was(guest: Guest, root: Path, request_: str) -> None:
    root.chmod(0o777)
    guest.uid, guest.gid = SOMEONE, SOME_GROUP
    made = MAKERS[request_](guest)
    assert (made.attr.uid, made.attr.gid) == (SOMEONE, SOME_GROUP)


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize("request_", MAKERS)
def test_who_may_not_write_to_a_directory_makes_nothing_there(guest: Guest, root: Path, request_: str) -> None:
    guest.uid, guest.gid = SOMEONE, SOME_GROUP
    with fails(errno.EACCES):
        MAKERS[request_](guest)
    assert os.listdir(root) == []


@pytest.mark.usefixtures("ids")
@root_only
def test_ids_that_can_not_be_are_refused_and_nothing_stays(
    guest: Guest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.chmod(0o777)
    guest.uid, guest.gid = SOMEONE, SOME_GROUP

    def refused(uid: int) -> None:
        if uid == SOMEONE:
            raise calls.failed(errno.EAGAIN)
        change(uid)

    change = calls.set_uid
    monkeypatch.setattr(calls, "set_uid", refused)
    with fails(errno.EAGAIN):
        guest.create(b"it")
    assert os.listdir(root) == []


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, SOME_GROUP), (SOMEONE, NOBODY), (NOBODY, NOBODY)])
def test_who_has_no_id_makes_nothing(root: Path, uid: int, gid: int) -> None:
    """Such an id would leave the daemon's own, whatever ids are translated to."""
    root.chmod(0o777)
    squashed = parse_idmap([f"squash-guest:0:{SOMEONE}:{NOBODY}"])
    with Guest(root, uids=squashed, gids=squashed) as guest:
        guest.uid, guest.gid = uid, gid
        for make in MAKERS.values():
            with fails(errno.EOVERFLOW):
                make(guest)
    assert os.listdir(root) == []


def group_extension(*groups: int) -> bytes:
    body = struct.pack(f"<{1 + len(groups)}I", len(groups), *groups)
    body += bytes(-len(body) % 8)
    return s.ExtHeader(8 + len(body), 32).pack() + body


@pytest.mark.usefixtures("ids")
@root_only
def test_a_group_that_the_request_names_lets_it_in(guest: Guest, root: Path) -> None:
    os.chown(root, 0, OTHER_GROUP)
    root.chmod(0o2770)
    guest.uid, guest.gid = SOMEONE, SOME_GROUP
    data = group_extension(OTHER_GROUP)
    guest.extensions = len(data) // 8
    with fails(errno.EACCES):
        guest.create(b"it", data=data)
    guest.share.agreed = InitFlag.CREATE_SUPP_GROUP
    made = guest.create(b"it", data=data)
    assert (made.attr.uid, made.attr.gid) == (SOMEONE, OTHER_GROUP)


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize(
    "data",
    [
        s.ExtHeader(0, 32).pack(),
        s.ExtHeader(4, 32).pack(),
        s.ExtHeader(80, 32).pack(),
        s.ExtHeader(8, 32).pack(),
        s.ExtHeader(16, 32).pack() + struct.pack("<2I", 2, 0),
        s.ExtHeader(16, 32).pack() + struct.pack("<2I", 0xFFFF_FFFF, 0),
    ],
)
def test_malformed_groups_are_refused(guest: Guest, root: Path, data: bytes) -> None:
    guest.share.agreed = InitFlag.CREATE_SUPP_GROUP
    guest.extensions = len(data) // 8
    with fails(errno.EINVAL):
        guest.create(b"it", data=data)
    assert os.listdir(root) == []


@pytest.mark.usefixtures("ids")
@pytest.mark.parametrize("agreed", [0, InitFlag.DONT_MASK])
@pytest.mark.parametrize("daemon", [0o000, 0o077])
def test_umask_is_that_of_the_request(guest: Guest, agreed: int, daemon: int) -> None:
    before = os.umask(daemon)
    try:
        guest.share.agreed = agreed
        assert guest.create(b"it", mode=0o666, umask=0o027).attr.mode & 0o7777 == 0o640
        assert guest.create(b"all", mode=0o666, umask=0).attr.mode & 0o7777 == 0o666
        assert os.umask(daemon) == daemon
    finally:
        os.umask(before)


def own_umask() -> int:
    os.umask(before := os.umask(0))
    return before


def test_the_umask_of_a_request_is_that_of_its_thread(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.share.agreed = InitFlag.DONT_MASK
    real, seen = os.mkdir, list[int]()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread in (one, other):  # a thread begins with what its parent has
            thread.submit(guest.mkdir, b"%d" % id(thread)).result(DEADLINE)

        def mkdir(name: bytes, mode: int, *, dir_fd: int) -> None:
            seen.extend((own_umask(), other.submit(own_umask).result(DEADLINE)))
            real(name, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "mkdir", mkdir)
        call = guest.call(ROOT_ID, s.MkdirIn(0o777, 0o057), b"masked")
        one.submit(guest.share.mkdir, call).result(DEADLINE)
    assert seen == [0o057, own_umask()]
    assert guest.lookup(b"masked").attr.mode & 0o777 == 0o720


@root_only
def test_two_users_at_once_do_not_mix(guest: Guest, root: Path) -> None:
    root.chmod(0o777)
    wrong: list[tuple[int, s.Attr]] = []

    def make(uid: int) -> None:
        for number in range(50):
            header = s.InHeader(uid=uid, gid=uid, nodeid=ROOT_ID)
            call = guest.call(ROOT_ID, s.CreateIn(os.O_RDWR, 0o600, 0, 0), b"%d-%d" % (uid, number))
            call.header = header
            out = s.EntryOut.unpack(guest.share.create(call)[: s.EntryOut.STRUCT.size])
            attr = s.Attr.unpack(out.attr)
            if (attr.uid, attr.gid) != (uid, uid):
                wrong.append((uid, attr))

    threads = [threading.Thread(target=make, args=(uid,)) for uid in (0, 1111, 2222, 3333)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(os.listdir(root)) == 200


def privileged(guest: Guest, root: Path) -> Entry:
    """An open file with suid, sgid and capabilities."""
    file = guest.create(b"file", mode=0o755)
    guest.write(file, b"x" * 100)
    os.chmod(root / "file", 0o6755)
    os.setxattr(root / "file", "security.capability", CAPABILITY)
    return file


def setattr_(guest: Guest, file: Entry, **fields: int) -> s.Attr:
    answer = s.AttrOut.unpack(guest.share.setattr(guest.call(file.nodeid, s.SetattrIn(**fields))))
    return s.Attr.unpack(answer.attr)


CHANGES: dict[str, Callable[[Guest, Entry, bool], object]] = {
    "WRITE": lambda guest, file, kill: guest.write(file, b"y", 0, WriteFlag.KILL_SUIDGID if kill else 0),
    "truncate": lambda guest, file, kill: setattr_(guest, file, valid=1 << 3 | (1 << 11 if kill else 0), size=5),
    "ftruncate": lambda guest, file, kill: setattr_(
        guest, file, valid=1 << 3 | 1 << 6 | (1 << 11 if kill else 0), fh=file.fh, size=5
    ),
    "OPEN": lambda guest, file, kill: guest.open(file.nodeid, os.O_RDWR | os.O_TRUNC, OpenFlag.KILL_SUIDGID if kill else 0),
}


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize("request_", CHANGES)
@pytest.mark.parametrize("kill", [True, False])
def test_f10_a_change_takes_suid_and_sgid_if_it_says_so(guest: Guest, root: Path, request_: str, kill: bool) -> None:
    file = privileged(guest, root)
    CHANGES[request_](guest, file, kill)
    assert guest.getattr(file.nodeid).mode & 0o7777 == (0o755 if kill else 0o6755)
    assert os.listxattr(root / "file") == []


@pytest.mark.usefixtures("ids")
@root_only
@pytest.mark.parametrize("agreed", [0, InitFlag.HANDLE_KILLPRIV_V2])
@pytest.mark.parametrize("uid", [0, SOMEONE])
def test_f10_fallocate_and_copies_take_them_from_users(guest: Guest, root: Path, agreed: int, uid: int) -> None:
    file = privileged(guest, root)
    guest.share.agreed, guest.uid = agreed, uid
    kept = 0o6755 if not agreed or uid == 0 else 0o755
    guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 0, 4096, 0)))
    assert guest.getattr(file.nodeid).mode & 0o7777 == kept
    os.chmod(root / "file", 0o6755)
    guest.share.copy_file_range(guest.call(file.nodeid, s.CopyFileRangeIn(file.fh, 0, file.nodeid, file.fh, 4096, 50, 0)))
    assert guest.getattr(file.nodeid).mode & 0o7777 == kept


@pytest.mark.usefixtures("ids")
@root_only
def test_f10_chown_takes_them(guest: Guest, root: Path) -> None:
    file = privileged(guest, root)
    after = setattr_(guest, file, valid=1 << 1 | 1 << 2, uid=SOMEONE, gid=SOME_GROUP)
    assert (after.uid, after.gid, after.mode & 0o7777) == (SOMEONE, SOME_GROUP, 0o755)
    assert os.listxattr(root / "file") == []


RANGES: dict[str, Callable[[Guest, Entry], object]] = {
    "FALLOCATE": lambda guest, file: guest.share.fallocate(guest.call(file.nodeid, s.FallocateIn(file.fh, 0, 4096, 0))),
    "COPY_FILE_RANGE": lambda guest, file: guest.share.copy_file_range(
        guest.call(file.nodeid, s.CopyFileRangeIn(file.fh, 0, file.nodeid, file.fh, 4096, 50, 0))
    ),
}


class Prefixed:
    """All attributes of the guest are called otherwise on the host."""

    def client_to_host(self, name: bytes) -> bytes:
        return b"user.guest." + name

    def host_to_client(self, name: bytes) -> bytes | None:
        return name.removeprefix(b"user.guest.") if name.startswith(b"user.guest.") else None


@root_only
@pytest.mark.parametrize("request_", [*CHANGES, *RANGES, "chown"])
def test_f10_capabilities_that_the_host_does_not_know_are_taken_too(root: Path, request_: str) -> None:
    with Guest(root, ShareOptions(xattr=True), xattr_names=Prefixed()) as guest:
        file = guest.create(b"file", mode=0o755)
        given = s.SetxattrIn(len(CAPABILITY), 0, 0)
        guest.share.setxattr(guest.call(file.nodeid, given, b"security.capability", data=CAPABILITY))
        assert os.listxattr(root / "file") == ["user.guest.security.capability"]
        if request_ == "chown":
            setattr_(guest, file, valid=2, uid=SOMEONE)
        elif request_ in RANGES:
            RANGES[request_](guest, file)
        else:
            CHANGES[request_](guest, file, False)
        assert os.listxattr(root / "file") == []


class Shifted:
    """Ids of the guest are 100000 less than the host's; 77 may not be used."""

    def to_host(self, id: int) -> int:
        if id == 77:
            raise calls.failed(errno.EPERM)
        return id + 100000

    def to_guest(self, id: int) -> int:
        return id - 100000 if id >= 100000 else 65534


@root_only
def test_ids_are_translated_both_ways(root: Path) -> None:
    root.chmod(0o777)
    with Guest(root, uids=Shifted(), gids=Shifted()) as guest:
        guest.uid = guest.gid = 5
        file = guest.create(b"it")
        assert (file.attr.uid, file.attr.gid) == (5, 5)
        assert ((root / "it").stat().st_uid, (root / "it").stat().st_gid) == (100005, 100005)
        assert guest.getattr(ROOT_ID).uid == 65534
        setattr_(guest, file, valid=1 << 1, uid=6, gid=77)
        assert ((root / "it").stat().st_uid, (root / "it").stat().st_gid) == (100006, 100005)
        for act in (lambda: setattr_(guest, file, valid=1 << 2, gid=77), lambda: guest.create(b"more")):
            guest.uid = 77
            with fails(errno.EPERM):
                act()


@root_only
def test_someone_who_is_not_root_makes_files_his_own(root: Path) -> None:
    """In a process of its own, for it gives up being root."""
    root.chmod(0o777)
    open_to_all(root)
    script = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with fails(errno.EPERM):
    Guest(root, ShareOptions(inode_file_handles=Handles.MANDATORY))
with Guest(root, ShareOptions(xattr=True)) as guest:
    guest.uid = guest.gid = 0
    made = guest.create(b"it", mode=0o600)
    guest.write(made, b"here")
    guest.write(made, b"H", flags=4)
    guest.link(made.nodeid, b"linked")
    guest.symlink(b"symlink", b"x")
    guest.mkdir(b"directory")
    with fails(errno.EPERM):
        guest.share.setattr(guest.call(made.nodeid, s.SetattrIn(valid=2, uid=1)))
    print(made.attr.uid, made.attr.gid, guest.read(made, 9).decode(), sorted(os.listdir(root)))
"""
    assert run(script, root) == "65534 65534 Here ['directory', 'it', 'linked', 'symlink']\n"


def test_write_moves_what_the_source_gives(guest: Guest) -> None:
    file = guest.create(b"file")
    given = s.WriteIn(file.fh, 0, 3, WriteFlag.KILL_SUIDGID, 0, 0)
    assert guest.share.write(guest.call(file.nodeid, given), Source(b"abcdef")) == 3
    assert guest.read(file, 9) == b"abc"
