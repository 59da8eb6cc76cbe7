"""When fds run out, and how handles take their place."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import Handles, ShareOptions
from vhostuser.devices.fs.passthrough import calls, state
from vhostuser.devices.fs.passthrough.calls import failed
from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import Guest
from .in_a_namespace import open_to_all, root_only, run

FILES = 400


@pytest.fixture
def few() -> Iterator[int]:
    """There may be so many fds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    few = lowest + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def many(root: Path) -> None:
    for number in range(FILES):
        (root / f"{number}").touch()


def test_f32_lookups_end_with_emfile_and_begin_again(root: Path, few: int) -> None:
    many(root)
    with Guest(root, ShareOptions(inode_file_handles=Handles.NEVER)) as guest:
        nodeids = list[int]()
        with fails(errno.EMFILE):
            for number in range(FILES):
                nodeids.append(guest.lookup(b"%d" % number).nodeid)
        assert len(nodeids) > 100
        others = [os.open("/", os.O_RDONLY) for _ in range(state.RESERVE // 2)]  # sockets and logs still work
        for fd in others:
            os.close(fd)
        assert guest.getattr(nodeids[-1]).nlink == 1
        with fails(errno.EMFILE):
            guest.lookup(b"399")
        guest.forget(nodeids[0])
        guest.lookup(b"399")


def test_f32_opens_end_with_emfile_and_begin_again(root: Path, few: int) -> None:
    (root / "file").touch()
    with Guest(root, ShareOptions(inode_file_handles=Handles.NEVER)) as guest:
        file = guest.lookup(b"file")
        with fails(errno.EMFILE):
            for _ in range(FILES):
                file = file._replace(fh=guest.open(file.nodeid))
        with fails(errno.EMFILE):
            guest.opendir()
        with fails(errno.EMFILE):
            guest.create(b"new")
        guest.release(file)
        guest.open(file.nodeid)


def test_f32_a_listing_that_runs_out_of_fds_gives_names(root: Path, few: int) -> None:
    many(root)
    with Guest(root, ShareOptions(inode_file_handles=Handles.NEVER)) as guest:
        found = guest.readdirplus(guest.opendir(), size=1 << 20)
        assert len(found) == FILES + 2
        assert len([name for name, _, entry in found if entry.nodeid == 0]) > 200


@root_only
def test_f32_handles_take_the_place_of_fds(root: Path, few: int) -> None:
    many(root)
    with Guest(root) as guest:
        nodeids = [guest.lookup(b"%d" % number).nodeid for number in range(FILES)]
        assert [guest.lookup(b"%d" % number).nodeid for number in range(FILES)] == nodeids
        assert len(os.listdir("/proc/self/fd")) < few * 3 // 4
        for number in range(FILES):
            assert guest.getattr(nodeids[number]).ino == os.stat(root / f"{number}").st_ino
        for nodeid in nodeids:
            guest.forget(nodeid, 2)
            with fails(errno.EBADF):
                guest.getattr(nodeid)


@root_only
def test_mandatory_handles_take_no_fd(root: Path) -> None:
    many(root)
    with Guest(root, ShareOptions(inode_file_handles=Handles.MANDATORY)) as guest:
        guest.lookup(b"0")
        before = len(os.listdir("/proc/self/fd"))
        for number in range(FILES):
            guest.lookup(b"%d" % number)
        assert len(os.listdir("/proc/self/fd")) == before


@root_only
def test_a_deleted_file_is_stale_and_its_number_means_another(root: Path) -> None:
    (root / "a").touch()
    with Guest(root, ShareOptions(inode_file_handles=Handles.MANDATORY)) as guest:
        old = guest.lookup(b"a")
        (root / "a").unlink()
        with fails(errno.ESTALE):
            guest.getattr(old.nodeid)
        for number in range(20):  # the file system gives the number away again, sooner or later
            (root / f"{number}").touch()
            assert guest.lookup(b"%d" % number).nodeid != old.nodeid
        with fails(errno.ESTALE):
            guest.getattr(old.nodeid)


def test_handles_that_can_not_be_are_mandatory_or_not(root: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    def refused(*_: object) -> int:
        raise failed(errno.EPERM)

    many(root)
    monkeypatch.setattr(state, "open_by_handle", refused)
    monkeypatch.setattr(state, "name_to_handle", refused)
    with fails(errno.EPERM):
        Guest(root, ShareOptions(inode_file_handles=Handles.MANDATORY))
    with Guest(root, ShareOptions(inode_file_handles=Handles.PREFER)) as guest, fails(errno.EMFILE):
        for number in range(FILES):
            guest.lookup(b"%d" % number)


@root_only
def test_f32_who_can_not_open_by_handles_has_fds_alone(root: Path) -> None:
    open_to_all(root)
    many(root)
    script = """
import resource
os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
with Guest(root) as guest:
    nodeids = []
    with fails(errno.EMFILE):
        for number in range(300):
            nodeids.append(guest.lookup(b"%d" % number).nodeid)
    for nodeid in nodeids:
        guest.getattr(nodeid)
    print(len(nodeids) > 120)
"""
    assert run(script, root) == "True\n"


def test_the_kernel_says_which_mount(root: Path) -> None:
    fd = os.open(root, os.O_PATH)
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        assert calls.mount_id(fd) == int(text.split("mnt_id:")[1].split()[0])
    finally:
        os.close(fd)


def test_a_reset_gives_all_fds_back(root: Path) -> None:
    many(root)
    with Guest(root) as guest:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(50):
            guest.open(guest.lookup(b"%d" % number).nodeid)
        guest.opendir()
        guest.share.reset()
        assert len(os.listdir("/proc/self/fd")) == before
        assert guest.getattr(ROOT_ID).ino == root.stat().st_ino
