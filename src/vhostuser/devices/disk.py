"""A file as a disk: opened, locked against other writers, read and written by byte offsets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import stat
from struct import Struct
from typing import TYPE_CHECKING, Final

from .. import _native
from ..limited_log import printable
from ..transport.fds import OwnedFd
from ..virtio.block import SECTOR
from ..virtio.chain import DescriptorChain
from .file_error import FileError, cannot_open
from .vectors import move, read_into, write_from

if TYPE_CHECKING:
    from .._native.block import BlockFile

log = logging.getLogger(__name__)

KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What fallocate says where the file system, or the disk, has no such thing."""
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})
_LOCK: Final = Struct("@hhqqi0q")  # struct flock
_ZEROS: Final = memoryview(bytes(1 << 16))

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Disk:
    """A regular file or a block device. Raises FileError if it can't be used; its methods raise OSError.

    A disk that may be written is locked, so that nobody else who locks what he uses (another one of these, QEMU) writes to
    it; read-only disks may share a file.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        self._file = _open(self.path, read_only=read_only)
        self._lost = 0
        self.compiled: BlockFile | None = None
        """The same file for compiled code, after `compile`."""
        try:
            self.size = _size(self.path, self._file.fileno())
            lock_file(self.path, self._file.fileno(), read_only=read_only)
        except BaseException:
            self.close()
            raise

    @property
    def granularity(self) -> int:
        """Bytes of a block of the file system: what it allocates and frees as a whole."""
        return max(SECTOR, os.fstat(self._file.fileno()).st_blksize)

    def compile(self, name: bytes) -> None:
        """Let compiled code read and write the file; `name` is the disk's id. OSError if there is no room for another fd."""
        self.compiled = _native.block.BlockFile(self._file.fileno(), self.size // SECTOR, self.read_only, name)

    def read(self, chain: DescriptorChain, offset: int, *, start: int, size: int) -> None:
        """Fill `size` writable bytes of a request from `start` on; EIO if the file has become too short for that."""
        while (done := read_into(chain, self._file.fileno(), offset, start=start, size=size)) != size:
            offset, start, size = offset + _some(done, offset), start + done, size - done

    def write(self, chain: DescriptorChain, offset: int, *, start: int, size: int) -> None:
        """Write `size` readable bytes of a request from `start` on."""
        while (done := write_from(chain, self._file.fileno(), offset, start=start, size=size)) != size:
            offset, start, size = offset + _some(done, offset), start + done, size - done

    def flush(self) -> None:
        """Make durable what was written. Where that failed once it fails for good: the kernel has dropped what it had."""
        if lost := self._lost or (self.compiled and self.compiled.lost):
            raise OSError(lost, "an earlier flush failed, so what was written may be lost")
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self._lost = error.errno or errno.EIO
            if self.compiled:
                self.compiled.lost = self._lost
            raise

    def discard(self, offset: int, size: int) -> None:
        """Give the range back to the file system, if it takes it."""
        self._allocate(PUNCH_HOLE, offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range read as zeroes. Its space stays allocated, unless `unmap`."""
        modes = (PUNCH_HOLE, ZERO_RANGE) if unmap else (ZERO_RANGE,)
        if not any(self._allocate(mode, offset, size) for mode in modes):
            self._put_zeroes(offset, size)

    def _put_zeroes(self, offset: int, size: int) -> None:
        while size:
            count, rest = divmod(size, _ZEROS.nbytes)
            done = _some(move(os.pwritev, self._file.fileno(), [*[_ZEROS] * count, _ZEROS[:rest]], offset), offset)
            offset, size = offset + done, size - done

    def _allocate(self, mode: int, offset: int, size: int) -> bool:
        """Call fallocate; whether that is possible here."""
        while _fallocate(self._file.fileno(), mode | KEEP_SIZE, offset, size):
            number = ctypes.get_errno()
            if number in _CANNOT:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    def close(self) -> None:
        """Close the file; the lock goes with it. Compiled code that is in a request keeps both until that is done."""
        self.compiled = None
        self._file.close()


def _some(done: int, offset: int) -> int:
    """EIO if nothing was done."""
    if not done:
        raise OSError(errno.EIO, f"the file ends at {offset:#x}")
    return done


def _open(path: str, *, read_only: bool) -> OwnedFd:
    """The open file. A block device that is to be written must not be in use by the kernel (O_EXCL): mounted, or swap."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        if not read_only and stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_EXCL
        return OwnedFd(os.open(path, flags))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FileError(f"cannot open {printable(path)}: it is mounted or in use", "try: unmount it first") from None
        advice = "try: --read-only" if error.errno in _NOT_WRITABLE and not read_only else "try: check --blk-file"
        raise cannot_open(path, error, advice) from None


def _size(path: str, fd: int) -> int:
    """The bytes of a file, in whole sectors."""
    mode, name = os.fstat(fd).st_mode, printable(path)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        text = f"cannot serve {name}: it is neither a regular file nor a block device"
        raise FileError(text, "try: another FILE in --blk-file")
    size = os.lseek(fd, 0, os.SEEK_END)
    if size < SECTOR:
        raise FileError(f"cannot serve {name}: it has {size} bytes, less than a sector", "try: truncate -s 64M FILE")
    if size % SECTOR:
        log.warning("%s has %d bytes: the last %d are no whole sector and can't be reached", name, size, size % SECTOR)
    return size - size % SECTOR


def lock_file(path: str, fd: int, *, read_only: bool) -> None:
    """Lock the whole file for this open file: a reader with other readers, a writer alone."""
    kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            text = f"cannot serve {printable(path)}: it is locked by another process that uses it"
            raise FileError(text, "try: end that one first, or give both --read-only") from None
        log.warning("%s can't be locked (%s): nothing keeps others from writing to it", printable(path), error.strerror)
