"""What the guest has open: files and directories, by the `fh` that OPEN, CREATE and OPENDIR answered."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from itertools import count

from .... import _native
from .calls import failed
from .inodes import Fd, Inode


@dataclass(slots=True)
class OpenFile:
    """An open regular file."""

    inode: Inode
    fd: Fd
    appends: bool = False
    """Whether the host lets nothing be written but to the file's end."""
    told: int = 0
    """The last failed write-back that it was told of."""


@dataclass(slots=True)
class OpenDirectory:
    """An open directory; `ahead` are entries as the kernel gave them, those before `at` were given to the guest, and
    `position` is the offset at which the next one begins.
    """

    inode: Inode
    fd: Fd
    lock: threading.Lock = field(default_factory=threading.Lock)
    position: int = 0
    ahead: bytes = b""
    at: int = 0


class Opened:
    """All that is open. The numbers are never used twice."""

    def __init__(self) -> None:
        self.compiled = _native.opened.OpenFiles() if _native.accelerated else None
        """The same files for compiled code, which READs them without Python."""
        self.plain = False
        """Whether it reads the files that are opened from now on: their bytes are all that a READ is about."""
        self._numbers = count(1)
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}

    def add_file(self, file: OpenFile) -> int:
        """The `fh` of a file that was just opened."""
        number = next(self._numbers)
        self._files[number] = file
        if self.plain and self.compiled:
            self.compiled.add(number, file.inode.nodeid, file.fd.number, file.fd)
        return number

    def add_directory(self, directory: OpenDirectory) -> int:
        """The `fh` of a directory that was just opened."""
        number = next(self._numbers)
        self._directories[number] = directory
        return number

    def file(self, fh: int, nodeid: int) -> OpenFile:
        """The open file `fh` of the inode `nodeid`. OSError, EBADF, if there is none."""
        found = self._files.get(fh)
        if found is None or found.inode.nodeid != nodeid:
            raise failed(errno.EBADF)
        return found

    def directory(self, fh: int, nodeid: int) -> OpenDirectory:
        """The open directory `fh` of the inode `nodeid`. OSError, EBADF, if there is none."""
        found = self._directories.get(fh)
        if found is None or found.inode.nodeid != nodeid:
            raise failed(errno.EBADF)
        return found

    def release_file(self, fh: int, nodeid: int) -> None:
        """It is open no more. OSError, EBADF, if it is not."""
        self.file(fh, nodeid)
        if self._files.pop(fh, None) is None:
            raise failed(errno.EBADF)
        if self.compiled:
            self.compiled.remove(fh)

    def release_directory(self, fh: int, nodeid: int) -> None:
        """It is open no more. OSError, EBADF, if it is not."""
        self.directory(fh, nodeid)
        if self._directories.pop(fh, None) is None:
            raise failed(errno.EBADF)

    def clear(self) -> None:
        """Nothing is open any more."""
        self._files, self._directories = {}, {}
        if self.compiled:
            self.compiled.clear()
