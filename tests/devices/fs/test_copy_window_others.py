"""The window of copies while others change the same files: what they wrote is seen, and stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from vhostuser.devices.fs.dax import copy
from vhostuser.devices.fs.dax.copied_file import CopiedFile
from vhostuser.transport.fds import OwnedFd

from .failing import fails
from .windowed import PAGE, Guest, HostFile, Meanwhile, window_of

KEY = (1, 1)
_times = count(1)


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


def change(path: Path, data: bytes, offset: int) -> None:
    """Write to the file as others do, at a time of its own: a clock may be too coarse to show two changes."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, data, offset)
    os.close(fd)
    os.utime(path, (1, next(_times)))


def look(guest: Guest, path: Path) -> None:
    """What a GETATTR of the guest does to the window."""
    found = path.stat()
    guest.do(lambda: guest.window.refresh(KEY, found.st_size, found.st_mtime_ns))


def write(guest: Guest, path: Path, data: bytes, offset: int) -> None:
    """What a WRITE of the guest does."""

    def act() -> None:
        guest.window.before(KEY)
        change(path, data, offset)
        guest.window.after(KEY, offset, offset + len(data))

    guest.do(act)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("how", ["store", "write", "grow"])
def test_a_change_of_the_guest_hides_none_of_the_host(
    guest: Guest, file: HostFile, path: Path, how: str, writable: bool
) -> None:
    guest.show(file, 0, 0, pages=3, writable=writable)
    guest.show(file, 3, 8, writable=True)
    change(path, b"host", 2 * PAGE)
    if how == "store":
        guest.store(8, b"TAIL")
        guest.sync(KEY)
    else:
        write(guest, path, b"guest", 3 * PAGE + (100 if how == "grow" else 0))
    look(guest, path)
    assert guest.read(2)[:4] == b"host"


def test_what_was_stored_behind_the_end_does_not_overwrite_what_the_host_appends(
    guest: Guest, file: HostFile, path: Path
) -> None:
    guest.show(file, 3, 0, pages=2, writable=True)
    guest.store(0, b"behind", at=200)
    guest.store(1, b"behind")
    change(path, b"h" * 2 * PAGE, 3 * PAGE + 4)
    guest.sync()
    look(guest, path)
    wanted = b"tail" + b"h" * (2 * PAGE - 4)
    assert path.read_bytes()[3 * PAGE : 5 * PAGE] == wanted
    assert guest.read(0, 2) == wanted


def test_a_page_that_was_stored_into_behind_the_end_is_read_again(guest: Guest, file: HostFile, path: Path) -> None:
    guest.show(file, 3, 0, writable=True)
    guest.store(0, b"behind", at=200)
    change(path, b"host", 3 * PAGE)
    look(guest, path)
    assert guest.read(0) == b"host".ljust(PAGE, b"\0")


class ReadOnly(HostFile):
    """Cannot be opened to write."""

    def open(self, flags: int) -> OwnedFd:
        if flags & os.O_ACCMODE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().open(flags)


def test_f27_a_mapping_that_can_not_become_writable_goes_on_as_it_was(guest: Guest, path: Path) -> None:
    file = ReadOnly(str(path), KEY)
    guest.show(file, 0, 0)
    with fails(errno.EMFILE):
        guest.show(file, 0, 0, writable=True)
    change(path, b"host", 0)
    look(guest, path)
    assert guest.read(0)[:4] == b"host"


@pytest.mark.parametrize("request_", ["before", "after", "refresh"])
def test_a_mapping_that_goes_meanwhile_does_not_fail_a_request(
    guest: Guest, file: HostFile, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    guest.show(file, 0, 0, writable=True)
    window = guest.window
    acts: dict[str, Callable[[], object]] = {
        "before": lambda: window.before(KEY),
        "after": lambda: window.after(KEY, 0, 1),
        "refresh": lambda: window.refresh(KEY, 0, 0),
    }
    monkeypatch.setattr(window, "_lock", Meanwhile(lambda: window.remove([(0, PAGE)])))
    acts[request_]()


def test_f21_no_more_is_copied_at_once_than_a_step(
    guest: Guest, file: HostFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "GRANULE", PAGE)
    sizes: list[int] = []

    read = CopiedFile.read

    def noted(copied: CopiedFile, size: int, offset: int) -> bytes:
        sizes.append(size)
        return read(copied, size, offset)

    monkeypatch.setattr(CopiedFile, "read", noted)
    guest.show(file, 0, 0, pages=4, writable=True)
    change(path, b"host", 2 * PAGE)
    look(guest, path)
    guest.do(lambda: guest.window.after(KEY, 0, 4 * PAGE))
    assert guest.read(0, 4) == path.read_bytes().ljust(4 * PAGE, b"\0")
    assert set(sizes) == {PAGE}
