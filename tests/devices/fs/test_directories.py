"""Listings: whole, in parts of any size, from any offset, while the directory changes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser import _native
from vhostuser.devices.fs.passthrough import directories
from vhostuser.devices.fs.passthrough.inodes import Fd, Inode
from vhostuser.devices.fs.passthrough.opened import OpenDirectory
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID

from .failing import fails
from .guest import WILD, Guest

ENTRY = s.EntryOut.STRUCT.size
DIRENT = s.Dirent.STRUCT.size
MANY = 300


def listed(guest: Guest, fh: int, size: int) -> list[bytes]:
    """All names, from requests of `size` bytes each."""
    names, offset = list[bytes](), 0
    while found := guest.readdir(fh, offset, size):
        names += [name for name, _ in found]
        offset = found[-1][1].off
    return names


@pytest.mark.parametrize("size", [280, 512, 4096, 1 << 20])
def test_every_entry_is_listed_once(guest: Guest, root: Path, size: int) -> None:
    for number in range(MANY):
        (root / f"{number}").touch()
    names = listed(guest, guest.opendir(), size)
    assert sorted(names) == sorted([b".", b"..", *(b"%d" % number for number in range(MANY))])


def test_an_entry_says_what_it_is(guest: Guest, root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("x")
    found = {name: (dirent.ino, dirent.type) for name, dirent in guest.readdir(guest.opendir())}
    for name, type in (("file", 8), ("directory", 4), ("link", 10)):
        assert found[name.encode()] == (os.lstat(root / name).st_ino, type)


def test_what_is_above_the_root_is_not_told(guest: Guest, root: Path) -> None:
    inside = guest.mkdir(b"inside").nodeid
    found = {name: dirent.ino for name, dirent in guest.readdir(guest.opendir())}
    assert found[b".."] == found[b"."] == root.stat().st_ino
    below = {name: dirent.ino for name, dirent in guest.readdir(guest.opendir(inside), nodeid=inside)}
    assert below[b".."] == root.stat().st_ino


@pytest.mark.parametrize("back", [1, 5, 200])
def test_offsets_lead_back_to_where_they_were(guest: Guest, root: Path, back: int) -> None:
    for number in range(MANY):
        (root / f"{number}").touch()
    fh = guest.opendir()
    first = guest.readdir(fh, size=1 << 20)
    guest.readdir(fh, first[-1][1].off)
    assert [name for name, _ in guest.readdir(fh, first[back - 1][1].off, 1 << 20)] == [name for name, _ in first[back:]]


def test_listing_from_the_start_again_sees_what_is_new(guest: Guest, root: Path) -> None:
    fh = guest.opendir()
    assert len(guest.readdir(fh)) == 2
    (root / "new").touch()
    assert {name for name, _ in guest.readdir(fh)} == {b".", b"..", b"new"}


def test_f21_size_is_exact(guest: Guest, root: Path) -> None:
    (root / "12345678").touch()
    (root / "123456789").touch()
    fh = guest.opendir()
    whole = sum(DIRENT + len(name) + -len(name) % 8 for name in listed(guest, fh, 4096))
    assert len(guest.readdir(fh, 0, whole)) == 4
    assert len(guest.readdir(fh, 0, whole - 1)) == 3
    plus = whole + 4 * ENTRY
    assert len(guest.readdirplus(fh, 0, plus)) == 4
    assert len(guest.readdirplus(fh, 0, plus - 1)) == 3


def test_f21_too_small_for_any_entry(guest: Guest) -> None:
    for size in (0, 1, DIRENT + 7):
        with fails(errno.EINVAL):
            guest.readdir(guest.opendir(), 0, size)


@pytest.mark.parametrize("offset", [1 << 63, WILD])
def test_f21_wild_offsets_are_refused(guest: Guest, offset: int) -> None:
    with fails(errno.EINVAL):
        guest.readdir(guest.opendir(), offset)


def test_readdirplus_looks_up_what_it_lists(guest: Guest, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    found = {name: entry for name, _, entry in guest.readdirplus(guest.opendir())}
    assert found[b"."].nodeid == found[b".."].nodeid == 0
    file = found[b"file"]
    assert file.attr.size == 5
    guest.forget(file.nodeid)
    with fails(errno.EBADF):
        guest.getattr(file.nodeid)


def test_readdirplus_counts_only_what_it_gives(guest: Guest, root: Path) -> None:
    for number in range(5):
        (root / f"{number}").touch()
    fh, offset, given = guest.opendir(), 0, list[int]()
    while found := guest.readdirplus(fh, offset, 2 * (ENTRY + DIRENT + 8) + 100):
        given += [entry.nodeid for _, _, entry in found if entry.nodeid]
        offset = found[0][1].off  # the second one once more
        given += [entry.nodeid for _, _, entry in guest.readdirplus(fh, offset) if entry.nodeid]
    for nodeid in given:
        guest.getattr(nodeid)
        guest.forget(nodeid)
    for nodeid in set(given):
        with fails(errno.EBADF):
            guest.getattr(nodeid)


def test_entries_that_vanished_are_given_as_names(guest: Guest, root: Path) -> None:
    for number in range(MANY):
        (root / f"{number}").touch()
    fh = guest.opendir()
    first = guest.readdirplus(fh)
    for path in root.iterdir():
        path.unlink()
    second = guest.readdirplus(fh, first[-1][1].off)
    assert {entry.nodeid for _, _, entry in second} <= {0}


def test_a_deleted_directory_is_listed_as_on_the_host(guest: Guest, root: Path) -> None:
    inside = guest.mkdir(b"inside").nodeid
    fh = guest.opendir(inside)
    guest.rmdir(b"inside")
    with fails(errno.ENOENT):
        guest.readdir(fh, nodeid=inside)


def test_readdir_of_two_handles_is_apart(guest: Guest, root: Path) -> None:
    for number in range(10):
        (root / f"{number}").touch()
    one, other = guest.opendir(), guest.opendir()
    part = guest.readdir(one, 0, 100)
    assert len(guest.readdir(other)) == 12
    assert len(part) + len(guest.readdir(one, part[-1][1].off)) == 12


def test_opendir_of_what_is_no_inode(guest: Guest) -> None:
    with fails(errno.EBADF):
        guest.opendir(ROOT_ID + 1)


def test_the_two_kinds_of_listing_go_on_where_the_other_one_stopped(guest: Guest, root: Path) -> None:
    """Linux asks for the first entries with their inodes, and for the others without."""
    names = [b"entry-%03d" % at + b"x" * (at % 60) for at in range(100)]
    for name in names:
        (root / os.fsdecode(name)).touch()
    fh, found, offset, plus = guest.opendir(), list[bytes](), 0, True
    while True:
        rows = guest.readdirplus(fh, offset, 1024) if plus else guest.readdir(fh, offset, 1024)
        if not rows:
            break
        found += [row[0] for row in rows]
        offset, plus = rows[-1][1].off, not plus
    assert sorted(found) == sorted([*names, b".", b".."])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 255])
def test_names_of_any_length_are_padded_with_zeroes(guest: Guest, root: Path, length: int) -> None:
    (root / ("n" * length)).touch()
    fh = guest.opendir()
    data = guest.share.readdir(guest.call(ROOT_ID, s.ReadIn(fh, 0, 4096, 0, 0, 0)))
    start = data.index(b"n" * length)
    assert data[start + length : start + length + -length % 8] == bytes(-length % 8)
    assert (b"n" * length) in [name for name, _ in guest.readdir(fh)]


_records = st.lists(
    st.tuples(
        st.integers(0, WILD),
        st.integers(0, (1 << 63) - 1),
        st.integers(0, 255),
        st.sampled_from([b".", b"..", b"..."])
        | st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"0")),
        st.integers(0, 9),
    ),
    max_size=8,
)


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
@given(_records, st.integers(-1, 600), st.sampled_from([0, 77]))
def test_both_halves_list_the_same(records: list[tuple[int, int, int, bytes, int]], room: int, above: int) -> None:
    """Whatever the kernel lists, however it pads it."""
    rows = [
        struct.pack(f"=QQHB{len(name) + 1 + pad}s", ino, offset, 20 + len(name) + pad, type, name)
        for ino, offset, type, name, pad in records
    ]
    key = (1, above, 0)
    answers = []
    for take in (directories._take_python, directories._take_compiled):
        root = Inode(ROOT_ID if above else 5, key, stat.S_IFDIR, Fd(-1))
        directory = OpenDirectory(root, Fd(-1), ahead=b"".join(rows))
        parts, left = list[bytes](), room
        left = take(directory, parts, left)
        answers.append((b"".join(parts), max(left, -1), directory.at, directory.position))
    assert answers[0] == answers[1]


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
@pytest.mark.parametrize("cut", [1, 5, 19, 23])
def test_what_the_kernel_cuts_off_is_not_followed(cut: int) -> None:
    row = struct.pack("=QQHB5s", 1, 2, 24, 8, b"name")
    with pytest.raises(ValueError, match="cut off"):
        _native.listing.listed(row[:cut], 0, 4096, 0)
