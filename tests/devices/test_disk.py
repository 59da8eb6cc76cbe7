"""Which files are disks, and who may use one at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from struct import pack

import pytest

from vhostuser.devices.disk import Disk
from vhostuser.devices.file_error import FileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(4096))
    return made


def refused(path: Path, *, read_only: bool = False) -> FileError:
    with pytest.raises(FileError) as caught:
        Disk(path, read_only=read_only)
    assert caught.value.advice.startswith("try: ")
    return caught.value


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "none\033")
    assert str(error) == f"cannot open {tmp_path}/none\\x1b: No such file or directory (ENOENT)"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_what_is_no_disk_is_refused(tmp_path: Path, kind: str, read_only: bool) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    text = "Is a directory" if kind == "directory" and not read_only else "neither a regular file nor a block device"
    assert text in str(refused(path, read_only=read_only))


@pytest.mark.parametrize("size", [0, 511])
def test_less_than_a_sector_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    assert f"it has {size} bytes, less than a sector" in str(refused(path))


def test_an_odd_end_is_left_out_with_a_word(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(path, 5000)
    disk = Disk(path)
    disk.close()
    assert disk.size == 9 * 512
    assert "has 5000 bytes: the last 392 are no whole sector" in caplog.text


def test_a_writer_is_alone(path: Path) -> None:
    writer = Disk(path)
    for read_only in (False, True):
        assert "is locked by another process that uses it" in str(refused(path, read_only=read_only))
    writer.close()
    Disk(path).close()


def test_readers_share_and_keep_writers_out(path: Path) -> None:
    readers = [Disk(path, read_only=True) for _ in range(2)]
    assert "is locked" in str(refused(path))
    for reader in readers:
        reader.close()
    Disk(path).close()


def test_a_lock_that_qemu_would_hold_is_respected(path: Path) -> None:
    """QEMU locks bytes 100 and up of an image: a lock of any part is in the way of a writer."""
    with path.open("rb") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, pack("@hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))
        assert "is locked" in str(refused(path))
        Disk(path, read_only=True).close()


def test_a_file_that_cannot_be_locked_is_used_with_a_word(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    Disk(path).close()
    assert "can't be locked (No locks available)" in caplog.text


def test_a_read_only_disk_is_opened_read_only_and_nothing_is_inherited(path: Path) -> None:
    for read_only, access in ((True, os.O_RDONLY), (False, os.O_RDWR)):
        disk = Disk(path, read_only=read_only)
        fd = disk._file.fileno()
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == access
        assert not os.get_inheritable(fd)
        disk.close()


@pytest.mark.parametrize(
    ("number", "read_only", "text", "advice"),
    [
        (errno.EACCES, False, "Permission denied (EACCES)", "try: --read-only"),
        (errno.EROFS, False, "Read-only file system (EROFS)", "try: --read-only"),
        (errno.EACCES, True, "Permission denied (EACCES)", "try: check --blk-file"),
        (errno.EBUSY, False, "it is mounted or in use", "try: unmount it first"),
    ],
)
def test_why_a_file_cannot_be_opened(
    path: Path, number: int, read_only: bool, text: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", closed)
    error = refused(path, read_only=read_only)
    assert text in str(error)
    assert error.advice == advice
