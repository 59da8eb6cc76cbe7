"""What a range of the window shows of a file: whole pages of the file itself, and a copy of the rest."""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from typing import Final

from ....shared_memory import MapRequest
from ....transport.fds import OwnedFd
from ..mapping import MappedFile

PAGE: Final = mmap.PAGESIZE
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})


class Source:
    """A file that is mapped, open for writing if it may be and `write` asks for it. OSError if it can't be opened."""

    __slots__ = ("count", "fd", "file", "longest", "writable")

    def __init__(self, file: MappedFile, *, write: bool) -> None:
        self.file, self.writable = file, write
        self.count = 0
        """How many granules there are of it."""
        self.longest = 0
        """Its bytes, when it was mapped or looked at last."""
        try:
            self.fd = file.open(os.O_RDWR if write else os.O_RDONLY)
        except OSError as error:
            if not write or error.errno not in _NOT_WRITABLE:
                raise
            self.fd, self.writable = file.open(os.O_RDONLY), False

    def make_writable(self) -> None:
        """Have it open for writing. OSError if it is none to write to."""
        if not self.writable:
            fd = self.file.open(os.O_RDWR)
            self.fd.close()
            self.fd, self.writable = fd, True

    def size(self) -> int:
        """Its bytes now."""
        return os.fstat(self.fd.fileno()).st_size


@dataclass(frozen=True, slots=True)
class Granule:
    """`size` bytes of the window, from `moffset` on, and of a file, from `foffset` on."""

    moffset: int
    size: int
    foffset: int
    source: Source
    split: int
    """So many of them are the file itself; the others are a copy, in the place of the copies that is like this one."""
    writable: bool
    """The front-end maps it for reading and writing."""
    stored: bool
    """The guest has asked to store into it."""

    @property
    def end(self) -> int:
        """Where the window has something else again."""
        return self.moffset + self.size

    @property
    def copied(self) -> tuple[int, int]:
        """The place of the copy in the window, from where to where; maybe empty."""
        return self.moffset + self.split, self.end

    def rows(self, copies: OwnedFd) -> list[MapRequest]:
        """The mappings that it is made of: one or two."""
        start, end = self.copied
        file = MapRequest(self.source.fd, self.moffset, self.split, self.foffset, self.writable)
        copy = MapRequest(copies, start, end - start, start, self.writable)
        return [row for row in (file, copy) if row.len]


def whole_pages(size: int, foffset: int, most: int) -> int:
    """How many bytes from `foffset` on, `most` at most, are pages that a file of `size` bytes has completely."""
    return max(0, min(most, size // PAGE * PAGE - foffset))
