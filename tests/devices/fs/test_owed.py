"""What could not be written back when its mapping went: it is kept, shown, and tried again (F35)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.devices.fs.dax import owed
from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.devices.fs.dax.owed import MOST_FILES, Owed

from .failing import fails
from .windowed import PAGE, Guest, HostFile, window_of

KEY = (1, 1)
LONGEST = 64


class Disk:
    """Takes no bytes while it is full; or else all, but for the next so many times."""

    full = True
    failures = 0

    def fails(self) -> bool:
        self.failures -= bool(failing := self.failures)
        return self.full or failing > 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made, write = Disk(), CopiedFile.write

    def write_or_fail(file: CopiedFile, data: bytes, offset: int) -> None:
        if made.fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data, offset)

    monkeypatch.setattr(CopiedFile, "write", write_or_fail)
    return made


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
def guest(disk: Disk) -> Iterator[Guest]:
    with window_of() as made:
        yield made


def lose_place(guest: Guest, file: HostFile, path: Path, how: str) -> None:
    """Store into a page, and take its place while it can't be written."""
    guest.show(file, 0, 0, writable=True)
    guest.store(0, b"stored", at=10)
    if how == "removed":
        with fails(errno.ENOSPC):
            guest.remove(0)
    else:
        guest.show(file, 2, 0)
    assert path.read_bytes()[:20] == b"A" * 20


STORED = b"A" * 10 + b"stored" + b"A" * 4
both = pytest.mark.parametrize("how", ["removed", "replaced"])


@both
def test_f35_it_is_in_the_file_once_an_fsync_succeeds_and_not_before(
    guest: Guest, file: HostFile, path: Path, disk: Disk, how: str
) -> None:
    lose_place(guest, file, path, how)
    for _ in range(2):
        with fails(errno.ENOSPC):
            guest.sync(KEY)
    disk.full = False
    guest.sync(KEY)
    assert path.read_bytes()[:20] == STORED


@both
@pytest.mark.parametrize("writable", [False, True])
def test_f35_the_guest_sees_it_where_it_maps_the_range_again(
    guest: Guest, file: HostFile, path: Path, disk: Disk, how: str, writable: bool
) -> None:
    lose_place(guest, file, path, how)
    guest.show(file, 0, 5, writable=writable)
    assert guest.read(5)[:20] == STORED
    guest.show(file, 0, 5, writable=True)
    guest.store(5, b"more", at=12)
    assert guest.read(5)[:20] == b"A" * 10 + b"stmore" + b"A" * 4
    disk.full = False
    with fails(errno.ENOSPC):  # of before
        guest.sync(KEY)
    guest.sync(KEY)
    assert path.read_bytes()[:20] == b"A" * 10 + b"stmore" + b"A" * 4


@pytest.mark.parametrize("writable", [False, True])
def test_f35_the_guest_sees_it_also_after_the_file_was_changed_on_the_host(
    guest: Guest, file: HostFile, path: Path, writable: bool
) -> None:
    lose_place(guest, file, path, "removed")
    guest.show(file, 0, 5)
    guest.show(file, 0, 5, writable=writable)
    with open(path, "r+b") as host:
        host.write(b"host")
    os.utime(path, (1, 1))
    found = path.stat()
    guest.do(lambda: guest.window.refresh(KEY, found.st_size, found.st_mtime_ns))
    assert guest.read(5)[10:20] == STORED[10:]


def test_what_the_guest_has_taken_back_is_not_written_after_all(
    guest: Guest, file: HostFile, path: Path, disk: Disk
) -> None:
    """A page that is as the file again is none that was stored into."""
    lose_place(guest, file, path, "removed")
    guest.show(file, 0, 5, writable=True)
    guest.store(5, b"A" * PAGE)
    disk.full = False
    with fails(errno.ENOSPC):
        guest.sync(KEY)
    assert path.read_bytes()[:PAGE] == b"A" * PAGE


def test_what_is_stored_elsewhere_later_is_not_overwritten(guest: Guest, file: HostFile, path: Path, disk: Disk) -> None:
    guest.show(file, 0, 5, writable=True)
    lose_place(guest, file, path, "removed")
    guest.store(5, b"later ", at=10)
    disk.full, disk.failures = False, 1
    for _ in range(2):
        with suppress(OSError):
            guest.sync(KEY)
    assert path.read_bytes()[:20] == b"A" * 10 + b"later " + b"A" * 4


def test_f35_a_read_has_it_once_it_can_be_written(guest: Guest, file: HostFile, path: Path, disk: Disk) -> None:
    lose_place(guest, file, path, "removed")
    disk.full = False
    guest.do(lambda: guest.window.before(KEY, PAGE, 2 * PAGE))
    assert path.read_bytes()[:20] == b"A" * 20
    guest.do(lambda: guest.window.before(KEY, 0, PAGE))
    assert path.read_bytes()[:20] == STORED


def test_what_is_written_later_stays(guest: Guest, file: HostFile, path: Path, disk: Disk) -> None:
    lose_place(guest, file, path, "removed")
    guest.do(lambda: guest.window.before(KEY, 12, 12))
    with open(path, "r+b") as host:
        host.seek(12)
        host.write(b"--")
    guest.do(lambda: guest.window.after(KEY, 12, 14))
    disk.full = False
    with fails(errno.ENOSPC):
        guest.sync(KEY)
    assert path.read_bytes()[:20] == b"A" * 10 + b"st--ed" + b"A" * 4


@pytest.mark.parametrize("by_guest", [True, False])
def test_nothing_is_written_behind_the_end(guest: Guest, file: HostFile, path: Path, disk: Disk, by_guest: bool) -> None:
    lose_place(guest, file, path, "removed")
    if by_guest:
        guest.truncate(file, 13)
        guest.truncate(file, 20)
    else:
        os.truncate(path, 13)
    disk.full = False
    with fails(errno.ENOSPC):
        guest.sync(KEY)
    assert path.read_bytes() == b"A" * 10 + b"sto" + bytes(7 if by_guest else 0)


def test_a_file_is_open_as_long_as_something_is_owed_to_it(guest: Guest, file: HostFile, path: Path, disk: Disk) -> None:
    def is_open() -> bool:
        return str(path) in {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}

    lose_place(guest, file, path, "removed")
    assert is_open()
    disk.full = False
    with fails(errno.ENOSPC):
        guest.sync()
    assert not is_open()


def test_the_end_of_a_session_tries_once_more_and_says_what_is_lost(
    guest: Guest, file: HostFile, path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    lose_place(guest, file, path, "removed")
    guest.do(guest.window.end)
    assert "6 bytes that the guest stored are lost" in caplog.text
    caplog.clear()
    lose_place(guest, file, path, "removed")
    disk.full = False
    guest.do(guest.window.end)
    assert path.read_bytes()[:20] == STORED
    assert "lost" not in caplog.text


def test_the_end_of_a_session_counts_what_is_still_mapped(
    guest: Guest, file: HostFile, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    guest.show(file, 0, 0, writable=True)
    guest.store(0, b"stored", at=10)
    guest.do(guest.window.end)
    assert "6 bytes that the guest stored are lost" in caplog.text


def test_f32_no_more_is_kept_than_there_is_room_for(
    guest: Guest, file: HostFile, path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed, "MOST_BYTES", PAGE)
    lose_place(guest, file, path, "removed")
    assert "lost" not in caplog.text
    guest.show(file, 1, 1, writable=True)
    guest.store(1, b"too much")
    with fails(errno.ENOSPC):
        guest.remove(1)
    assert "too many could not be written" in caplog.text
    disk.full = False
    with fails(errno.ENOSPC):
        guest.sync(KEY)
    assert path.read_bytes()[: PAGE + 8] == STORED + b"A" * (PAGE - 20) + b"B" * 8


def test_there_are_only_so_many_files() -> None:
    kept = Owed()
    assert all(kept.add((0, at), 0, b"x") for at in range(MOST_FILES))
    assert not kept.add((0, MOST_FILES), 0, b"x")
    assert kept.add((0, 0), 5, b"x")
    kept.cut((0, 1), 0, 1)
    assert kept.add((0, MOST_FILES), 0, b"x")


offsets = st.integers(0, LONGEST)
acts = st.tuples(st.sampled_from(["add", "cut"]), offsets, st.integers(1, LONGEST), st.integers(1, 255))


@given(st.lists(acts, max_size=20), offsets, offsets)
def test_pieces_are_what_was_added_last_and_not_cut(done: list[tuple[str, int, int, int]], start: int, end: int) -> None:
    kept, model = Owed(), bytearray(3 * LONGEST)
    for what, offset, size, value in done:
        if what == "add":
            assert kept.add(KEY, offset, bytes([value]) * size)
            model[offset : offset + size] = bytes([value]) * size
        else:
            kept.cut(KEY, offset, offset + size)
            model[offset : offset + size] = bytes(size)
    found = bytearray(3 * LONGEST)
    pieces = kept.within(KEY, start, end)
    for offset, data in pieces:
        assert not any(found[offset : offset + len(data)])
        assert data
        found[offset : offset + len(data)] = data
    assert found == bytes(start) + model[start:end] + bytes(len(model) - max(start, end)) if start < end else not pieces
    assert sorted(pieces) == pieces
    assert (KEY in kept) == any(model)
    assert kept.clear() == sum(value > 0 for value in model)
    assert not list(kept)
