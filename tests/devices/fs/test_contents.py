"""The bytes of a window: how they are read, and what of them was stored."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vhostuser.devices.fs.dax.contents import BLOCK, CELL, GRANULE, PAGE, Contents, _differences
from vhostuser.memory.mapping import map_file

SIZE = 2 * GRANULE
PLACES = st.lists(st.integers(0, 3 * PAGE + 99), max_size=20)


@pytest.fixture
def contents() -> Iterator[Contents]:
    made = Contents(SIZE)
    yield made
    made.close()


@pytest.fixture
def guest(contents: Contents) -> memoryview:
    """The window as the guest has it mapped."""
    return map_file(contents.file.fileno(), SIZE, 0)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of two and a half granules of other bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 256)) * (5 * GRANULE // 2 // 255))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(("foffset", "start", "size"), [(0, 0, GRANULE), (PAGE, 5 * PAGE, 3 * PAGE), (2 * GRANULE, 0, SIZE)])
def test_bytes_are_read_the_first_time_and_the_next(
    contents: Contents, guest: memoryview, fd: int, foffset: int, start: int, size: int, writable: bool
) -> None:
    for at in (0, foffset, foffset + PAGE):
        contents.load(fd, at, start, start + size, writable=writable)
        wanted = os.pread(fd, size, at).ljust(size, b"\0")
        assert guest[start : start + size] == wanted
        assert list(contents.stored(start, start + size)) == [] or not writable


def test_a_file_system_without_sendfile_is_read_all_the_same(
    contents: Contents, guest: memoryview, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*arguments: object) -> int:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "sendfile", unable)
    contents.load(fd, PAGE, 0, GRANULE, writable=True)
    assert guest[:GRANULE] == os.pread(fd, GRANULE, PAGE)


def test_bytes_that_come_piece_by_piece_are_all_read(
    contents: Contents, guest: memoryview, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, read = os.sendfile, os.preadv
    monkeypatch.setattr(os, "sendfile", lambda to, of, offset, size: send(to, of, offset, min(size, 3 * PAGE + 1)))
    monkeypatch.setattr(os, "preadv", lambda of, into, offset: read(of, [into[0][: 3 * PAGE + 1]], offset))
    for at in (0, PAGE):
        contents.load(fd, at, 0, 10 * PAGE, writable=True)
        assert guest[: 10 * PAGE] == os.pread(fd, 10 * PAGE, at)


def test_a_file_that_can_not_be_read_is_an_error(contents: Contents, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "sendfile", broken)
    with pytest.raises(OSError, match="the disk"):
        contents.load(fd, 0, 0, GRANULE, writable=False)


def test_a_store_that_comes_while_bytes_are_read_again_is_seen(
    contents: Contents, guest: memoryview, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written down as the file's is read from the file, never from what the guest stores into."""
    contents.load(fd, 0, 0, GRANULE, writable=True)
    read = os.preadv

    def read_beside_a_store(source: int, buffers: list[memoryview], offset: int) -> int:
        guest[0:3] = b"one"
        done = read(source, buffers, offset)
        guest[PAGE : PAGE + 3] = b"two"
        return done

    monkeypatch.setattr(os, "preadv", read_beside_a_store)
    contents.load(fd, 0, 0, GRANULE, writable=True)
    assert list(contents.stored(0, GRANULE)) == [(PAGE, b"two")]


def test_what_was_stored_is_found_in_any_block_and_no_farther_than_asked(contents: Contents, guest: memoryview) -> None:
    for at in (0, PAGE - 1, BLOCK, SIZE - 1):
        guest[at] = 7
    assert list(contents.stored(0, SIZE)) == [(0, b"\7"), (PAGE - 1, b"\7"), (BLOCK, b"\7"), (SIZE - 1, b"\7")]
    assert list(contents.stored(0, BLOCK + 1)) == [(0, b"\7"), (PAGE - 1, b"\7"), (BLOCK, b"\7")]
    assert list(contents.stored(1, BLOCK)) == [(PAGE - 1, b"\7")]
    assert list(contents.stored(1, 1)) == []


def test_kept_bytes_are_the_files(contents: Contents, guest: memoryview, fd: int) -> None:
    contents.load(fd, 0, 0, GRANULE, writable=False)
    contents.keep(0, GRANULE)
    guest[5] = 0
    assert list(contents.stored(0, GRANULE)) == [(5, b"\0")]


def test_pages_that_the_guest_changed_are_not_renewed(contents: Contents, guest: memoryview) -> None:
    guest[PAGE] = 7
    contents.renew(0, b"n" * (2 * PAGE + 10))
    assert guest[:PAGE] == b"n" * PAGE
    assert guest[PAGE : 2 * PAGE] == b"\7".ljust(PAGE, b"\0")
    assert guest[2 * PAGE : 2 * PAGE + 11] == b"n" * 10 + b"\0"
    assert list(contents.stored(0, GRANULE)) == [(PAGE, b"\7")]


def test_what_is_forgotten_is_zeroes_and_no_memory(contents: Contents, guest: memoryview, fd: int) -> None:
    contents.load(fd, 0, 0, SIZE, writable=True)
    contents.forget(0, SIZE)
    assert os.fstat(contents.file.fileno()).st_blocks == 0
    assert guest[:PAGE] == bytes(PAGE)
    assert list(contents.stored(0, SIZE)) == []


@given(PLACES, st.integers(1, 3 * PAGE + 100))
@example([0, CELL - 1, CELL, 2 * CELL, 3 * PAGE + 99], 3 * PAGE + 100)
def test_differences_are_all_that_differs_and_begin_and_end_with_it(places: list[int], size: int) -> None:
    theirs = bytes(size)
    ours = bytearray(size)
    for at in places:
        if at < size:
            ours[at] = 1
    found = _differences(bytes(ours), theirs)
    merged = bytearray(size)
    for first, last in found:
        assert ours[first]
        assert ours[last - 1]
        assert b"\0" * 2 * CELL not in ours[first:last]
        merged[first:last] = ours[first:last]
    assert merged == ours
    assert found == sorted(found)


def test_a_store_that_comes_while_its_page_is_renewed_is_kept(
    contents: Contents, guest: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = contents._same

    def stored_then(start: int, size: int) -> bool:
        untouched = same(start, size)
        guest[10] = 9
        return untouched

    monkeypatch.setattr(contents, "_same", stored_then)
    contents.renew(0, bytes(2048) + b"host" + bytes(2044))
    monkeypatch.undo()
    assert bytes(guest[2048:2052]) == b"host"
    assert list(contents.stored(0, PAGE)) == [(10, b"\x09")]
