"""Directories: opened, listed from any offset, with or without what the names stand for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from ....fuse import structs as s
from ....fuse.numbers import ROOT_ID, FopenFlag
from ....fuse.rules import Call
from ..options import Cache
from . import calls
from .calls import failed
from .inodes import Inode
from .names import Lookups
from .opened import Entry, OpenDirectory
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
_LINUX_DIRENT: Final = Struct("=QqHB")
_DIRENT: Final = s.Dirent.STRUCT
_ENTRY_SIZE: Final = s.EntryOut.STRUCT.size
_NO_ENTRY: Final = bytes(_ENTRY_SIZE)
"""An EntryOut that says nothing: the guest looks the name up if it wants it."""
_DOTS: Final = (b".", b"..")


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
        return self._list(call, 0, lambda directory, name: b"")

    def readdirplus(self, call: Call) -> bytes:
        """The entries from an offset on, each with its inode, looked up once more."""
        return self._list(call, _ENTRY_SIZE, self._entry)

    def _entry(self, directory: Inode, name: bytes) -> bytes:
        if name in _DOTS:
            return _NO_ENTRY
        try:
            return self._lookups.entry(directory, name)
        except OSError:
            return _NO_ENTRY

    def _list(self, call: Call, extra: int, entry: Callable[[Inode, bytes], bytes]) -> bytes:
        """Entries, each with `extra` bytes that `entry` gives, as many as there is room for."""
        given = arguments(call, s.ReadIn)
        directory = self._state.opened.directory(given.fh, call.header.nodeid)
        if given.offset >= 1 << 63:
            raise failed(errno.EINVAL)
        parts, left = list[bytes](), given.size
        with directory.lock:
            for each in _entries(directory, given.offset):
                ino, offset, type, name = each
                size = extra + _DIRENT.size + len(name)
                padding = -size % 8
                left -= size + padding
                if left < 0:
                    directory.ahead.append(each)
                    break
                directory.position = offset
                parts += (
                    entry(directory.inode, name),
                    _DIRENT.pack(_shown(directory.inode, name, ino), offset, len(name), type),
                )
                parts.append(name + bytes(padding))
        if not parts and left < 0:
            raise failed(errno.EINVAL)
        return b"".join(parts)


def _shown(directory: Inode, name: bytes, ino: int) -> int:
    """The inode number of an entry; what is above the root is not told."""
    return directory.key[1] if directory.nodeid == ROOT_ID and name == b".." else ino


def _entries(directory: OpenDirectory, offset: int) -> Iterator[Entry]:
    """The entries from `offset` on, each taken out of what was read ahead."""
    if offset != directory.position:
        directory.ahead.clear()
        os.lseek(directory.fd.number, offset, os.SEEK_SET)
        directory.position = offset
    given = False
    while True:
        given = given or bool(directory.ahead)
        while directory.ahead:
            yield directory.ahead.pop()
        directory.ahead = _parsed(_chunk(directory, given))
        if not directory.ahead:
            return


def _chunk(directory: OpenDirectory, given: bool) -> bytes:
    """What the kernel says comes next. An error is for the next request to tell, if entries were given to this one."""
    try:
        return calls.getdents(directory.fd.number, CHUNK)
    except OSError:
        if given:
            return b""
        raise


def _parsed(data: bytes) -> list[Entry]:
    """The entries in what the kernel gave, the first one last."""
    found, at = list[Entry](), 0
    while at < len(data):
        ino, offset, size, type = _LINUX_DIRENT.unpack_from(data, at)
        name = data[at + _LINUX_DIRENT.size : at + size]
        found.append((ino, offset & (1 << 64) - 1, type, name[: name.index(b"\0")]))
        at += size
    found.reverse()
    return found
