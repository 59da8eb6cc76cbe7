"""A file as memory: what is served, what is refused, and the copy of a read-only one."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vhostuser.devices.disk import Disk
from vhostuser.devices.file_error import FileError
from vhostuser.devices.image import MOST_COPIED, SMALLEST, Image

from .requests import pattern

MIB = 1 << 20


def make(folder: Path, size: int, content: bytes = b"") -> Path:
    path = folder / "image"
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(size)
    return path


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Image]:
    with closing(Image(path, read_only=read_only)) as image:
        yield image


@pytest.mark.parametrize("size", [2 * MIB, 4 * MIB, 1 << 40])
def test_a_power_of_two_is_served_as_it_is(tmp_path: Path, size: int) -> None:
    path = make(tmp_path, size)
    with opened(path) as image:
        assert image.size == size
        assert os.path.samestat(os.fstat(image.fileno()), path.stat())
        assert fcntl.fcntl(image.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(1, SMALLEST), (MIB, SMALLEST), (SMALLEST - 1, SMALLEST), (SMALLEST + 1, 2 * SMALLEST), (3 * MIB, 4 * MIB)],
)
def test_another_size_is_refused_with_the_one_that_would_do(tmp_path: Path, size: int, wanted: int) -> None:
    path = make(tmp_path, size)
    with pytest.raises(FileError, match=f"cannot serve .*image: .*{size} bytes") as refused:
        Image(path)
    assert refused.value.advice.startswith(f"try: truncate -s {wanted} FILE")
    assert path.stat().st_size == size
    with open(path, "r+b") as file:
        file.truncate(wanted)
    with opened(path) as image:
        assert image.size == wanted


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_image_is_refused(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(FileError, match=r"cannot open .*No such file"):
        Image(tmp_path / "none", read_only=read_only)
    with pytest.raises(FileError, match="it is empty"):
        Image(make(tmp_path, 0), read_only=read_only)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(FileError, match="it is no regular file"):
            Image(path, read_only=read_only)


def test_a_file_that_may_not_be_written_names_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileError, match="Permission denied") as refused:
        Image(tmp_path / "image")
    assert refused.value.advice == "try: --read-only"


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    path = make(tmp_path, SMALLEST)
    with opened(path):
        for other in (Image, Disk):
            with pytest.raises(FileError, match="locked by another process"):
                other(path)
        with pytest.raises(FileError, match="locked by another process"):
            Image(path, read_only=True)
    with opened(path, read_only=True), opened(path):
        pass  # a copy was taken, so nobody is in the way any more


@pytest.mark.parametrize("size", [1, 5000, SMALLEST, 3 * MIB])
def test_a_read_only_image_is_a_padded_copy_that_keeps_its_size(tmp_path: Path, size: int) -> None:
    content = pattern(5120)[: min(size, 5120)]
    path = make(tmp_path, size, content)
    with opened(path, read_only=True) as image:
        assert image.size == max(SMALLEST, 1 << (size - 1).bit_length()) == os.fstat(image.fileno()).st_size
        assert os.pread(image.fileno(), image.size, 0) == content.ljust(image.size, b"\0")
        for wrong in (image.size - 4096, image.size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(image.fileno(), wrong)
        os.pwrite(image.fileno(), b"only here", 0)
    assert path.read_bytes() == content.ljust(size, b"\0")


@pytest.mark.parametrize(("read_only", "mode"), [(True, os.O_RDONLY), (False, os.O_RDWR)])
def test_a_read_only_image_is_not_even_opened_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool, mode: int
) -> None:
    path, call, modes = make(tmp_path, SMALLEST), os.open, list[int]()

    def note(name: str, flags: int) -> int:
        modes.append(flags & os.O_ACCMODE)
        return call(name, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", note)
        Image(path, read_only=read_only).close()
    assert modes == [mode]


def test_holes_cost_a_copy_nothing_and_data_between_them_is_copied(tmp_path: Path) -> None:
    path = make(tmp_path, MOST_COPIED, b"first")
    for offset in (MOST_COPIED // 2 + 1, MOST_COPIED - 4):
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"more")
    with opened(path, read_only=True) as image:
        assert os.fstat(image.fileno()).st_blocks * 512 < MIB
        assert os.pread(image.fileno(), 5, 0) == b"first"
        assert [os.pread(image.fileno(), 4, at) for at in (MOST_COPIED // 2 + 1, MOST_COPIED - 4)] == [b"more"] * 2


def test_a_copy_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"it has {MOST_COPIED + 1} bytes, and a copy in memory at most {MOST_COPIED}"):
        Image(make(tmp_path, MOST_COPIED + 1), read_only=True)


def test_a_file_that_shrinks_under_the_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, SMALLEST, pattern(8192))
    sendfile = os.sendfile

    def shrink_and_send(target: int, source: int, offset: int, count: int) -> int:
        os.truncate(path, 4096)
        return sendfile(target, source, offset, count)

    monkeypatch.setattr(os, "sendfile", shrink_and_send)
    with pytest.raises(FileError, match=r"cannot copy .*: it became shorter meanwhile"):
        Image(path, read_only=True)


def test_a_failed_sync_is_not_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports lost pages once, and has none to write afterwards."""
    sync, failures = os.fdatasync, [errno.ENOSPC]

    def fail_once(fd: int) -> None:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with opened(make(tmp_path, SMALLEST)) as image:
        for _ in range(2):
            with pytest.raises(OSError, match=rf"\[Errno {errno.ENOSPC}\]"):
                image.flush()
    assert not failures


def test_a_flush_of_a_copy_promises_nothing(tmp_path: Path) -> None:
    readonly = pytest.raises(OSError, match=rf"\[Errno {errno.EROFS}\]")
    with opened(make(tmp_path, SMALLEST), read_only=True) as image, readonly:
        image.flush()
