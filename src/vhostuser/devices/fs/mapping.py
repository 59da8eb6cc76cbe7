"""SETUPMAPPING and REMOVEMAPPING: what they ask for lies in the window, or nothing is done ("DAX Window")."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final, Protocol

from ...fuse import structs as s
from ...fuse.numbers import NO_HANDLE, REMOVEMAPPING_MAX_ENTRY, MappingFlag
from ...fuse.rules import Call, MalformedRequest
from ...transport.fds import OwnedFd
from .transfer import LARGEST_OFFSET

EVERYTHING: Final = (1 << 64) - 1
"""The length of a REMOVEMAPPING that means the whole window."""
_RANGE: Final = s.RemovemappingOne.STRUCT
_FLAGS: Final = MappingFlag.READ | MappingFlag.WRITE


class MappedFile(Protocol):
    """A regular file of the share."""

    @property
    def key(self) -> tuple[int, int]:
        """Its st_dev and st_ino: mappings of the same file are one."""

    def open(self, flags: int) -> OwnedFd:
        """Open it anew, by its inode. OSError if that can't be."""


class Window(Protocol):
    """Shared memory region 0, as the requests about it are done. What fails is an OSError."""

    alignment: int
    """Of offsets and lengths, as a power of two: 12 to 21."""

    def begin(self) -> None:
        """A session begins: see to it that the window is where the guest sees it."""

    def ready(self) -> None:
        """A driver goes on, perhaps after all that was mapped has been taken back: see to it that it is there again."""

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        """Show a range of a file at `moffset` instead of what was there."""

    def remove(self, ranges: Sequence[tuple[int, int]], /) -> None:
        """Take away what is in these ranges: (moffset, len)."""

    def end(self) -> None:
        """The session has ended: nothing is mapped."""

    def reset(self) -> None:
        """The device was reset: the front-end has taken all away."""

    def close(self) -> None:
        """The window has ended."""


class SharedFiles(Protocol):
    """Where the files are that are mapped."""

    def file(self, nodeid: int, /) -> MappedFile:
        """The regular file of an inode. OSError if there is none."""


class Mapper:
    """Maps files into the window and takes them away, as the guest asks."""

    def __init__(self, files: SharedFiles, window: Window | None, size: int) -> None:
        self._files, self._window, self._size = files, window, size
        self.enabled = False
        """Whether the guest has agreed to DAX, and the window is there."""

    def setup(self, call: Call) -> None:
        """SETUPMAPPING. Whatever was mapped there before is replaced."""
        given, window = call.arguments, self._open()
        if not isinstance(given, s.SetupmappingIn):
            raise MalformedRequest("it has no arguments")
        if given.fh != NO_HANDLE:
            raise MalformedRequest(f"fh {given.fh:#x} is none: files are mapped by their inode, with fh {NO_HANDLE:#x}")
        if given.flags & ~_FLAGS or not given.flags:
            raise MalformedRequest(f"flags {given.flags:#x} are not of {_FLAGS:#x}, one at least")
        self._check_range(window, given.moffset, given.len)
        if given.foffset % (1 << window.alignment):
            raise MalformedRequest(f"foffset {given.foffset:#x} is no multiple of {1 << window.alignment:#x}")
        if given.foffset + given.len > LARGEST_OFFSET:
            raise MalformedRequest(f"foffset {given.foffset:#x} + len {given.len:#x} passes the end of all files")
        file = self._files.file(call.header.nodeid)
        writable = bool(given.flags & MappingFlag.WRITE)
        window.setup(file, foffset=given.foffset, size=given.len, moffset=given.moffset, writable=writable)

    def remove(self, call: Call) -> None:
        """REMOVEMAPPING: all of the ranges, or none if one of them is wrong. What is not mapped there is no error."""
        given, window = call.arguments, self._open()
        if not isinstance(given, s.RemovemappingIn):
            raise MalformedRequest("it has no arguments")
        if given.count > REMOVEMAPPING_MAX_ENTRY:
            raise MalformedRequest(f"count {given.count} is more than {REMOVEMAPPING_MAX_ENTRY}")
        ranges = [(0, self._size) if size == EVERYTHING else (start, size) for start, size in _RANGE.iter_unpack(call.data)]
        for start, size in ranges:
            self._check_range(window, start, size)
        if ranges:
            window.remove(ranges)

    def _open(self) -> Window:
        """The window, if the guest may use it."""
        if self._window is None or not self.enabled:
            raise OSError(errno.ENOSYS, "there is no DAX window in this session")
        return self._window

    def _check_range(self, window: Window, start: int, size: int) -> None:
        unit = 1 << window.alignment
        if not size or size % unit or start % unit:
            raise MalformedRequest(f"moffset {start:#x} and len {size:#x} must be multiples of {unit:#x}, and some bytes")
        if start + size > self._size:
            raise MalformedRequest(f"moffset {start:#x} + len {size:#x} passes the window's end {self._size:#x}")
