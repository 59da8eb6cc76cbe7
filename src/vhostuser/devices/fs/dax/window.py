"""What a window is to the device, and what a file is to a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ....transport.fds import OwnedFd

Key = tuple[int, int]
"""st_dev and st_ino: mappings of the same file are one."""


class MappedFile(Protocol):
    """A file that may be mapped."""

    @property
    def key(self) -> Key:
        """Which file it is."""

    def open(self, flags: int) -> OwnedFd:
        """Open it anew, by its inode. OSError."""


class Window(Protocol):
    """A shared memory region that shows files to the guest. Methods may be called in any queue's thread."""

    alignment: int
    """Of file and window offsets, as a power of two ("FUSE_MAP_ALIGNMENT")."""

    def begin(self) -> None:
        """A session begins: the first INIT after a reset. OSError if there can be no window."""

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        """Show bytes of a file in the window. OSError if that can't be; the window is as it was then."""

    def remove(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These ranges (moffset, size) are needed no more. OSError if what was stored there can't be written back."""

    def before(self, key: Key) -> None:
        """This file is about to be read or changed otherwise, or looked at."""

    def after(self, key: Key, start: int, end: int) -> None:
        """These bytes of the file were changed otherwise than through the window."""

    def refresh(self, key: Key, size: int, mtime_ns: int) -> None:
        """The file was looked at, and so it is on the host."""

    def write_back(self, key: Key | None = None) -> None:
        """Write what the guest stored of this file, or of all, to the files. OSError if that failed."""

    def serves(self, *, writable_file: bool) -> bool:
        """Whether such a file is mapped at all ("FUSE_ATTR_DAX")."""

    def end(self) -> None:
        """The session ends: nothing is mapped, what was stored is written back."""

    def reset(self) -> None:
        """The device was reset, or the front-end is gone: so is the window's mapping."""

    def close(self) -> None:
        """Let go of all."""
