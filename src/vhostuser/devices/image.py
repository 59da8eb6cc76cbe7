"""A file as memory: mapped whole and synced, or, where nobody may write to it, a copy of it that can't shrink."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

from ..limited_log import printable
from ..transport.fds import OwnedFd
from .disk import lock_file
from .file_error import FileError, cannot_open

SMALLEST: Final = 2 << 20
"""Linux makes no memory of a region that is less than a section of its memory map."""
MOST_COPIED: Final = 1 << 30
"""The largest image that is copied: its copy takes so much of the host's memory."""
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})


class Image:
    """A regular file whose bytes are a region of memory. Raises FileError if it can't be used.

    A file that may be written is locked, so that nobody else who locks what he uses writes to it. Of a read-only one there
    is a copy, taken now, padded with zeros to `size`: QEMU 11.1 wants every file open for writing, and keeps no guest from
    writing where it should not.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        self._lost = 0
        self._file = _open(self.path, read_only=read_only)
        try:
            size = _size(self.path, self.fileno())
            lock_file(self.path, self.fileno(), read_only=read_only)
            self.size = _padded(self.path, size) if read_only else _whole(self.path, size)
            """Bytes of the region."""
            if read_only:
                file, self._file = self._file, _copied(self.path, self.fileno(), size, self.size)
                file.close()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """What is to be mapped, open for reading and writing."""
        return self._file.fileno()

    def flush(self) -> None:
        """Make durable what was written; OSError if it is not. Once failed it always is: the kernel has dropped it."""
        if self.read_only:
            raise OSError(errno.EROFS, "a read-only image takes no writes: they are in a copy that is lost at the end")
        if self._lost:
            raise OSError(self._lost, "an earlier flush failed, so what was written may be lost")
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self._lost = error.errno or errno.EIO
            raise

    def close(self) -> None:
        """Close the file; the lock, or the copy, goes with it."""
        self._file.close()


def _open(path: str, *, read_only: bool) -> OwnedFd:
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        return OwnedFd(os.open(path, flags))
    except OSError as error:
        advice = "try: --read-only" if error.errno in _NOT_WRITABLE and not read_only else "try: check --image"
        raise cannot_open(path, error, advice) from None


def _size(path: str, fd: int) -> int:
    """The file's bytes: some."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"cannot serve {printable(path)}: it is no regular file", "try: another FILE in --image")
    if not status.st_size:
        raise FileError(f"cannot serve {printable(path)}: it is empty", "try: truncate -s 64M FILE")
    return status.st_size


def _whole(path: str, size: int) -> int:
    """The size, which must be a region's: a driver takes all of that for memory, and what is beyond the file is lost."""
    wanted = _region(size)
    if size == wanted:
        return size
    why = f"its size, {size} bytes, is no power of two" if size > SMALLEST else f"it has {size} bytes, less than {SMALLEST}"
    text = f"cannot serve {printable(path)}: {why}, which QEMU 11.1 or Linux wants of the region that it is"
    raise FileError(text, f"try: truncate -s {wanted} FILE, or --read-only, which pads a copy")


def _padded(path: str, size: int) -> int:
    """The size of a region with room for a copy."""
    if size > MOST_COPIED:
        text = f"cannot serve {printable(path)} read-only: it has {size} bytes, and a copy in memory at most {MOST_COPIED}"
        raise FileError(text, "try: vhu-blk --read-only, or a copy of the file without --read-only")
    return _region(size)


def _region(size: int) -> int:
    """The smallest region for that many bytes."""
    return max(SMALLEST, 1 << (size - 1).bit_length())


def _copied(path: str, source: int, size: int, padded: int) -> OwnedFd:
    """A memfd that begins with the file's bytes, holes as holes, and keeps its size."""
    copy = OwnedFd(os.memfd_create("vhu-pmem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(copy.fileno(), padded)
        _copy_data(source, copy.fileno(), size)
        fcntl.fcntl(copy.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        copy.close()
        raise FileError(f"cannot copy {printable(path)}: {error.strerror}", "try: check the file and the memory") from None
    except BaseException:
        copy.close()
        raise
    return copy


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy what is no hole; OSError if the file has become shorter."""
    at = 0
    while (start := _next_data(source, at)) < size:
        end = min(size, os.lseek(source, start, os.SEEK_HOLE))
        os.lseek(target, start, os.SEEK_SET)
        at = start
        while at < end:
            sent = os.sendfile(target, source, at, end - at)
            if not sent:
                raise OSError(errno.EIO, "it became shorter meanwhile")
            at += sent


def _next_data(source: int, at: int) -> int:
    """Where data is from there on; beyond all sizes if there is none."""
    try:
        return os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 1 << 63
