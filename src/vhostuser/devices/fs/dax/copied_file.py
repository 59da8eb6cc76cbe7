"""A file of which a window has copies: how it was when they were read, and where it ends for the guest."""

from __future__ import annotations

import os

from ..mapping import MappedFile


class CopiedFile:
    """A file that has segments in the window, or is owed bytes."""

    __slots__ = ("current", "end", "fd", "seen", "size", "source", "writable")

    def __init__(self, source: MappedFile) -> None:
        self.source = source
        self.fd = source.open(os.O_RDONLY)
        self.writable = False
        try:
            self.seen = self.look()
        except OSError:
            self.fd.close()
            raise
        """Size and mtime, when its bytes were read."""
        self.end = self.seen[0]
        """Where it ends, as far as the guest knows: what it stores behind that is nothing."""
        self.size = self.end
        """Its bytes, when it was last about to be changed here, or was."""
        self.current = True
        """Whether it was still as it was seen, when it was last about to be changed here."""

    @property
    def key(self) -> tuple[int, int]:
        """Its st_dev and st_ino."""
        return self.source.key

    def make_writable(self, source: MappedFile) -> None:
        """Have an fd to write back by. OSError if the file is none to write to, as `source` is reached: another mount may
        be one to read only.
        """
        if not self.writable:
            fd = source.open(os.O_RDWR)
            self.fd.close()
            self.fd, self.writable = fd, True

    def look(self) -> tuple[int, int]:
        """Size and mtime now."""
        found = os.fstat(self.fd.fileno())
        return found.st_size, found.st_mtime_ns

    def changing(self) -> None:
        """It is about to be changed here: see whether somebody else has done so before."""
        found = self.look()
        self.size, self.current = found[0], found == self.seen

    def grown(self, end: int) -> None:
        """The guest has changed it: it knows that it has bytes up to `end`, unless it is shorter."""
        self.end = min(max(self.end, end), self.look()[0])

    def changed(self) -> None:
        """It was changed here, which is nothing new. What somebody else did before still is, and will be read again."""
        found = self.look()
        self.size = found[0]
        if self.current:
            self.seen = found

    def read(self, size: int, offset: int) -> bytes:
        """Its bytes, with zeroes behind its end."""
        data, done = bytearray(size), 0
        with memoryview(data) as view:
            while done < size and (got := os.preadv(self.fd.fileno(), [view[done:]], offset + done)):
                done += got
        return bytes(data)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of these bytes."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd.fileno(), data[done:], offset + done)
