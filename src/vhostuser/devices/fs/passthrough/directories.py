"""Directories: opened, listed from any offset, with or without what the names stand for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from struct import Struct
from typing import Final

from .... import _native
from ....fuse import structs as s
from ....fuse.numbers import ROOT_ID, FopenFlag
from ....fuse.rules import Call
from ..options import Cache
from . import calls
from .calls import failed
from .inodes import Inode
from .names import Lookups
from .opened import OpenDirectory
from .state import State, arguments

CHUNK: Final = 32 << 10
"""Bytes that are read of a directory at a time."""
FOPEN: Final = {
    Cache.AUTO: 0,
    Cache.ALWAYS: FopenFlag.CACHE_DIR | FopenFlag.KEEP_CACHE,
    Cache.NEVER: 0,
    Cache.METADATA: FopenFlag.CACHE_DIR | FopenFlag.KEEP_CACHE,
}
"""What the guest's kernel is told of an open directory."""
_linux_dirent: Final = Struct("=QQHB").unpack_from
_LINUX_DIRENT_SIZE: Final = 19
_DIRENT_SIZE: Final = s.Dirent.STRUCT.size
_ENTRY_SIZE: Final = s.EntryOut.STRUCT.size
_NO_ENTRY: Final = bytes(_ENTRY_SIZE)
"""An EntryOut that says nothing: the guest looks the name up if it wants it."""
_DOTS: Final = (b".", b"..")
EntryMaker = Callable[[Inode, bytes, int], bytes]
"""Makes the EntryOut of a name in a directory, listed with that inode number."""


class _Records(dict[int, Callable[..., bytes]]):
    """By how many times 8 bytes a name takes: what packs a Dirent with such a name behind it, and zeroes."""

    def __missing__(self, units: int) -> Callable[..., bytes]:
        self[units] = made = Struct(f"{s.Dirent.STRUCT.format}{8 * units}s").pack
        return made


_RECORDS: Final = _Records()


class Directories:
    """OPENDIR, READDIR, READDIRPLUS, RELEASEDIR."""

    def __init__(self, state: State, lookups: Lookups) -> None:
        self._state, self._lookups = state, lookups
        self._fopen = FOPEN[state.options.cache]

    def opendir(self, call: Call) -> s.OpenOut:
        """Open a directory."""
        inode = self._state.inode(call)
        if inode.type != stat.S_IFDIR:
            raise failed(errno.ENOTDIR)
        fd = self._state.reopen(inode, os.O_RDONLY | os.O_DIRECTORY)
        return s.OpenOut(self._state.opened.add_directory(OpenDirectory(inode, fd)), self._fopen, 0)

    def releasedir(self, call: Call) -> None:
        """Close a directory."""
        self._state.opened.release_directory(arguments(call, s.ReleaseIn).fh, call.header.nodeid)

    def readdir(self, call: Call) -> bytes:
        """The entries from an offset on."""
        return self._list(call, 0, None)

    def readdirplus(self, call: Call) -> bytes:
        """The entries from an offset on, each with its inode, looked up once more."""
        return self._list(call, _ENTRY_SIZE, self._entry)

    def _entry(self, directory: Inode, name: bytes, ino: int) -> bytes:
        if name in _DOTS:
            return _NO_ENTRY
        try:
            return self._lookups.listed(directory, name, ino)
        except OSError:
            return _NO_ENTRY

    def _list(self, call: Call, extra: int, entry: EntryMaker | None) -> bytes:
        """Entries, each behind `extra` bytes that `entry` makes, as many as there is room for."""
        given = arguments(call, s.ReadIn)
        directory = self._state.opened.directory(given.fh, call.header.nodeid)
        if given.offset >= 1 << 63:
            raise failed(errno.EINVAL)
        parts, left = list[bytes](), given.size
        with directory.lock:
            _seek(directory, given.offset)
            while left >= 0 and (directory.at < len(directory.ahead) or _read_ahead(directory, given=bool(parts))):
                left = _take(directory, parts, left, extra, entry) if entry else _take_plain(directory, parts, left)
        if not parts and left < 0:
            raise failed(errno.EINVAL)
        return b"".join(parts)


def _take(directory: OpenDirectory, parts: list[bytes], left: int, extra: int, entry: EntryMaker | None) -> int:
    """Give entries that were read ahead, in `left` bytes; how many are left, less than none if there are entries left.

    This is what a listing takes: a few steps an entry, and one `pack`.
    """
    data, at, end, inode = directory.ahead, directory.at, len(directory.ahead), directory.inode
    above = _above(directory)
    while at < end:
        ino, offset, size, type = _linux_dirent(data, at)
        start = at + _LINUX_DIRENT_SIZE
        name = data[start : data.index(b"\0", start)]
        length = len(name)
        units = (length + 7) >> 3
        left -= extra + _DIRENT_SIZE + 8 * units
        if left < 0:
            break
        if entry:
            parts.append(entry(inode, name, ino))
        if above and name == b"..":
            ino = above
        parts.append(_RECORDS[units](ino, offset, length, type, name))
        at += size
        directory.at, directory.position = at, offset
    return left


def _take_python(directory: OpenDirectory, parts: list[bytes], left: int) -> int:
    """The same of entries with nothing before them."""
    return _take(directory, parts, left, 0, None)


def _take_compiled(directory: OpenDirectory, parts: list[bytes], left: int) -> int:
    """The same again, compiled."""
    made, at, position = _native.listing.listed(directory.ahead, directory.at, left, _above(directory))
    if made:
        parts.append(made)
        directory.at, directory.position = at, position
    return left - len(made) if at == len(directory.ahead) else -1


_take_plain: Final = _take_compiled if _native.accelerated else _take_python


def _above(directory: OpenDirectory) -> int:
    """The inode number to tell of `..`; 0 for what the kernel says. What is above the root is not told."""
    return directory.inode.key[1] if directory.inode.nodeid == ROOT_ID else 0


def _seek(directory: OpenDirectory, offset: int) -> None:
    """Go on at `offset`: with what was read ahead, if it begins there."""
    if offset != directory.position:
        directory.ahead, directory.at = b"", 0
        os.lseek(directory.fd.number, offset, os.SEEK_SET)
        directory.position = offset


def _read_ahead(directory: OpenDirectory, *, given: bool) -> bool:
    """Read what comes next, if anything does. An error is for the next request to tell, if some were `given` to this one."""
    directory.ahead, directory.at = b"", 0
    try:
        directory.ahead = calls.getdents(directory.fd.number, CHUNK)
    except OSError:
        if not given:
            raise
    return bool(directory.ahead)
