"""A range of a file in two places of the window of copies: each store is seen, and gets to the file, whichever it came by.

Linux maps no range of an inode twice, but a file that is reached by two mounts is two inodes to it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.transport.fds import OwnedFd

from .failing import fails
from .windowed import PAGE, Guest, HostFile, window_of

KEY = (1, 1)
FIRST, SECOND = 1, 8
both = pytest.mark.parametrize("writable", [True, False])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three pages and a bit."""
    made = tmp_path / "file"
    made.write_bytes(b"".join(bytes([65 + at]) * PAGE for at in range(3)) + b"tail")
    return made


@pytest.fixture
def file(path: Path) -> HostFile:
    return HostFile(str(path), KEY)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with window_of() as made:
        yield made


class Disk:
    """Takes bytes, or not."""

    full = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made, write = Disk(), CopiedFile.write

    def write_or_fail(file: CopiedFile, data: bytes, offset: int) -> None:
        if made.full and data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data, offset)

    monkeypatch.setattr(CopiedFile, "write", write_or_fail)
    return made


def sync(guest: Guest) -> None:
    guest.sync(KEY)


@both
def test_a_second_mapping_shows_what_was_stored_into_the_first(
    guest: Guest, file: HostFile, path: Path, writable: bool
) -> None:
    guest.show(file, 0, FIRST, pages=2, writable=True)
    guest.store(FIRST + 1, b"stored", at=10)
    guest.show(file, 1, SECOND, pages=2, writable=writable)
    assert guest.read(SECOND)[8:18] == b"BBstoredBB"
    assert path.read_bytes()[PAGE + 10 : PAGE + 16] == b"stored"


@pytest.mark.parametrize("later", [FIRST, SECOND])
def test_of_two_stores_to_the_same_bytes_the_later_one_stays(guest: Guest, file: HostFile, path: Path, later: int) -> None:
    guest.show(file, 0, FIRST, writable=True)
    guest.store(FIRST, b"first", at=10)
    guest.show(file, 0, SECOND, writable=True)
    guest.store(later, b"later", at=12)
    sync(guest)
    assert path.read_bytes()[:20] == b"A" * 10 + b"filater" + b"A" * 3
    assert guest.read(FIRST) == guest.read(SECOND)


@pytest.mark.parametrize("between", [FIRST, SECOND])
def test_stores_between_each_other_are_both_kept(guest: Guest, file: HostFile, path: Path, between: int) -> None:
    """What is written of one is a piece that spans the other one."""
    around = FIRST + SECOND - between
    guest.show(file, 0, FIRST, writable=True)
    guest.show(file, 0, SECOND, writable=True)
    guest.store(around, b"<", at=10)
    guest.store(around, b">", at=20)
    guest.store(between, b"mid", at=14)
    sync(guest)
    wanted = b"A" * 10 + b"<AAAmidAAA>" + b"A" * 9
    assert path.read_bytes()[:30] == guest.read(FIRST)[:30] == guest.read(SECOND)[:30] == wanted


def test_a_mapping_that_is_asked_for_again_shows_what_was_stored_into_the_other(guest: Guest, file: HostFile) -> None:
    guest.show(file, 0, FIRST, writable=True)
    guest.show(file, 0, SECOND, writable=True)
    guest.store(FIRST, b"stored")
    guest.store(SECOND, b"too", at=100)
    guest.show(file, 0, SECOND, writable=True)
    assert guest.read(SECOND)[:103] == b"stored" + b"A" * 94 + b"too"


def test_a_mapping_may_take_a_part_of_the_place_of_the_other(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 0, 0, pages=3, writable=True)
    for at in range(3):
        guest.store(at, b"stored", at=at)
    guest.show(file, 1, 2, pages=3)
    assert [guest.read(0)[:6], guest.read(1)[1:7], guest.read(2)[1:7], guest.read(3)[2:8]] == [b"stored"] * 4
    sync(guest)
    assert path.read_bytes().count(b"stored") == 3


@both
def test_f35_it_is_shown_also_while_it_can_not_be_written(
    guest: Guest, file: HostFile, path: Path, disk: Disk, writable: bool
) -> None:
    guest.show(file, 0, FIRST, writable=True)
    guest.store(FIRST, b"stored", at=10)
    disk.full = True
    guest.show(file, 0, SECOND, writable=writable)
    assert guest.read(SECOND)[8:18] == b"AAstoredAA"
    guest.store(FIRST, b"later", at=12)
    disk.full = False
    with fails(errno.ENOSPC):  # of before
        sync(guest)
    wanted = b"A" * 10 + b"stlater" + b"A" * 3
    assert path.read_bytes()[:20] == guest.read(FIRST)[:20] == guest.read(SECOND)[:20] == wanted


@both
def test_f35_what_is_owed_when_one_goes_is_seen_in_the_other(
    guest: Guest, file: HostFile, path: Path, disk: Disk, writable: bool
) -> None:
    guest.show(file, 0, FIRST, writable=True)
    guest.show(file, 0, SECOND, writable=writable)
    guest.store(FIRST, b"stored", at=10)
    disk.full = True
    with fails(errno.ENOSPC):
        guest.remove(FIRST)
    assert guest.read(SECOND)[8:18] == b"AAstoredAA"
    disk.full = False
    with fails(errno.ENOSPC):
        sync(guest)
    assert path.read_bytes()[8:18] == guest.read(SECOND)[8:18] == b"AAstoredAA"


@both
def test_f35_a_look_at_the_file_hides_nothing_of_it(
    guest: Guest, file: HostFile, path: Path, disk: Disk, writable: bool
) -> None:
    guest.show(file, 0, FIRST, writable=True)
    guest.store(FIRST, b"stored", at=10)
    disk.full = True
    guest.show(file, 0, SECOND, writable=writable)
    os.utime(path, (1, 1))
    found = path.stat()
    guest.do(lambda: guest.window.refresh(KEY, found.st_size, found.st_mtime_ns))
    assert guest.read(SECOND)[8:18] == b"AAstoredAA"


def test_an_allocation_loses_nothing_that_could_not_be_written(guest: Guest, file: HostFile, path: Path, disk: Disk) -> None:
    """FALLOCATE changes no byte: `after` is told of none but the end."""
    guest.show(file, 0, FIRST, writable=True)
    guest.store(FIRST, b"stored")
    disk.full = True
    end = 4 * PAGE

    def act() -> None:
        assert guest.window.before(KEY, 0, end) == errno.ENOSPC
        os.truncate(path, end)
        guest.window.after(KEY, end, end)

    guest.do(act)
    assert guest.read(FIRST)[:6] == b"stored"
    disk.full = False
    with fails(errno.ENOSPC):
        sync(guest)
    assert path.read_bytes()[:6] == b"stored"


def test_what_was_stored_behind_the_end_is_nothing_once_the_file_reaches_there(
    guest: Guest, file: HostFile, path: Path
) -> None:
    guest.show(file, 3, FIRST, writable=True)
    guest.store(FIRST, b"behind", at=100)
    os.truncate(path, 4 * PAGE)  # by others, and the guest does not know

    def act() -> None:
        guest.window.before(KEY, 0, 4 * PAGE)
        guest.window.after(KEY, 4 * PAGE, 4 * PAGE)

    guest.do(act)
    sync(guest)
    assert path.read_bytes()[3 * PAGE :] == guest.read(FIRST) == b"tail".ljust(PAGE, b"\0")


class ReadOnly(HostFile):
    """The same file by a mount that is one to read only."""

    def open(self, flags: int) -> OwnedFd:
        if flags & os.O_ACCMODE:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().open(flags)


def test_a_file_that_was_mapped_by_a_read_only_mount_is_stored_into_by_another_one(
    guest: Guest, file: HostFile, path: Path
) -> None:
    guest.show(ReadOnly(str(path), KEY), 0, FIRST)
    guest.show(file, 0, SECOND, writable=True)
    guest.store(SECOND, b"stored")
    sync(guest)
    assert path.read_bytes()[:6] == guest.read(FIRST)[:6] == b"stored"
